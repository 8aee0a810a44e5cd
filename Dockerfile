# One image for every process of docker-compose.yml. Build: docker build -t medseg .

FROM node:22-slim AS front
WORKDIR /app
COPY package.json package-lock.json .npmrc ./
RUN npm ci --omit=dev --ignore-scripts --no-audit --no-fund

FROM python:3.11-slim AS python
RUN pip install --no-cache-dir uv
COPY requirements.txt .
RUN uv venv --python 3.11 /opt/venv && uv pip install --no-cache --python /opt/venv/bin/python -r requirements.txt

FROM python:3.11-slim
RUN useradd --create-home --uid 1000 medseg && install -d -o medseg -g medseg -m 700 /data
COPY --from=python /opt/venv /opt/venv
WORKDIR /app
COPY --from=front /app/node_modules node_modules
COPY . .
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 MEDSEG_DATA_DIR=/data
# The pages' files go into the data folder of the image; a new volume starts as its copy. On an older volume WhiteNoise
# finds what is newer in /app by itself (WHITENOISE_USE_FINDERS).
USER medseg
RUN SECRET_KEY=only-for-this-build-step python manage.py collectstatic --noinput
VOLUME /data
EXPOSE 8000
CMD ["python", "-m", "uvicorn", "medseg_site.asgi:application", "--host", "0.0.0.0", "--port", "8000", "--no-access-log", "--timeout-graceful-shutdown", "5"]
