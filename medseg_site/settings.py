"""All settings of the platform, read from the environment. docs/SETTINGS.md lists the variables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dj_database_url
from kombu import Queue

from medseg_site import env

BASE_DIR = Path(__file__).resolve().parent.parent
DATA_DIR = Path(env.text("MEDSEG_DATA_DIR", str(BASE_DIR / "var"))).expanduser().resolve()

DEBUG = env.flag("DEBUG", default=False)
SECRET_KEY = env.secret_key(DATA_DIR, debug=DEBUG)
ALLOWED_HOSTS = env.words("ALLOWED_HOSTS", ["localhost", "127.0.0.1", "[::1]"])
CSRF_TRUSTED_ORIGINS = env.words("CSRF_TRUSTED_ORIGINS", [])
# In single-user mode there is one person and no login, and only this machine can reach the platform. Without it, people
# log in with Django's accounts.
MEDSEG_SINGLE_USER = env.flag("MEDSEG_SINGLE_USER", default=True)

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.humanize",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "channels",
    "django_filters",
    "django_htmx",
    "drf_spectacular",
    "drf_spectacular_sidecar",
    "drf_standardized_errors",
    "rest_framework",
    "rest_framework.authtoken",
    "medseg_site",
    "accounts",
    "uploads",
    "datasets",
    "models_app",
    "inference",
]

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "medseg_site.shared.web.gate.GateMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "medseg_site.shared.web.requests.SlashMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "medseg_site.shared.base.local_user.LocalUserMiddleware",
    "accounts.audit.AddressMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "django_htmx.middleware.HtmxMiddleware",
]

ROOT_URLCONF = "medseg_site.urls"
ASGI_APPLICATION = "medseg_site.asgi.application"
TEMPLATES: list[dict[str, Any]] = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]

# --- Database -------------------------------------------------------------------------------------------------------
DATABASES: dict[str, Any] = {
    "default": dj_database_url.parse(env.text("DATABASE_URL"))
    if env.text("DATABASE_URL")
    else {"ENGINE": "django.db.backends.sqlite3", "NAME": DATA_DIR / "medseg.sqlite3"}
}
# Under ASGI every request has a thread of its own, so a kept connection would leak.
DATABASES["default"]["CONN_MAX_AGE"] = 0
if DATABASES["default"]["ENGINE"] == "django.db.backends.sqlite3":
    # With WAL, readers go on while one process writes. With IMMEDIATE, a writer waits for its turn and does not fail
    # half-way.
    DATABASES["default"]["OPTIONS"] = {
        "timeout": 20,
        "transaction_mode": "IMMEDIATE",
        "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; PRAGMA foreign_keys=ON;",
    }
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

# --- Files ----------------------------------------------------------------------------------------------------------
S3_BUCKET_NAME = env.text("S3_BUCKET_NAME")
AWS_ACCESS_KEY_ID = env.text("AWS_ACCESS_KEY_ID")
AWS_SECRET_ACCESS_KEY = env.text("AWS_SECRET_ACCESS_KEY")
AWS_REGION = env.text("AWS_REGION", "us-east-1")
AWS_ENDPOINT_URL = env.text("AWS_ENDPOINT_URL")
# The address at which browsers reach the same store.
AWS_PUBLIC_ENDPOINT_URL = env.text("AWS_PUBLIC_ENDPOINT_URL")
MEDIA_ROOT = DATA_DIR / "media"
CACHE_DIR = DATA_DIR / "cache"
TMP_DIR = DATA_DIR / "tmp"

_default_storage: dict[str, Any] = {
    "BACKEND": "medseg_site.shared.storage.local_folder.AtomicFileSystemStorage",
    "OPTIONS": {"location": str(MEDIA_ROOT), "base_url": None},
}
if S3_BUCKET_NAME:
    _default_storage = {
        "BACKEND": "medseg_site.shared.storage.s3.QuickS3Storage",
        "OPTIONS": {
            "bucket_name": S3_BUCKET_NAME,
            "access_key": AWS_ACCESS_KEY_ID or None,
            "secret_key": AWS_SECRET_ACCESS_KEY or None,
            "region_name": AWS_REGION,
            "endpoint_url": AWS_ENDPOINT_URL or None,
            "addressing_style": "path" if AWS_ENDPOINT_URL else "auto",
            "default_acl": None,
            "querystring_auth": True,
            "file_overwrite": True,
            "signature_version": "s3v4",
            # A larger object is read through a file on the disk and not through memory.
            "max_memory_size": 8 * 2**20,
        },
    }
STORAGES: dict[str, Any] = {
    "default": _default_storage,
    "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
}

STATIC_URL = "/static/"
STATIC_ROOT = DATA_DIR / "static"
_node_modules = BASE_DIR / "node_modules"
STATICFILES_DIRS = [
    (name, folder)
    for name, folder in {
        "vendor/tabler/css": _node_modules / "@tabler/core/dist/css",
        "vendor/tabler/js": _node_modules / "@tabler/core/dist/js",
        "vendor/tabler-icons": _node_modules / "@tabler/icons-webfont/dist",
        "vendor/htmx": _node_modules / "htmx.org/dist",
        "vendor/chartjs": _node_modules / "chart.js/dist",
    }.items()
    if folder.is_dir()
]
# With the finders, a laptop needs no collectstatic.
WHITENOISE_USE_FINDERS = True

# --- Limits ---------------------------------------------------------------------------------------------------------
MEDSEG_MAX_UPLOAD_BYTES = env.integer("MEDSEG_MAX_UPLOAD_MB", 20_000, minimum=1) * 2**20
MEDSEG_MAX_IMAGE_UPLOAD_BYTES = env.integer("MEDSEG_MAX_IMAGE_UPLOAD_MB", 2_000, minimum=1) * 2**20
MEDSEG_MAX_EXPANDED_BYTES = env.integer("MEDSEG_MAX_EXPANDED_MB", 200_000, minimum=1) * 2**20
MEDSEG_UPLOAD_PART_BYTES = env.integer("MEDSEG_UPLOAD_PART_MB", 16, minimum=1) * 2**20
MEDSEG_UPLOAD_KEEP_HOURS = env.integer("MEDSEG_UPLOAD_KEEP_HOURS", 48, minimum=1)
MEDSEG_URL_IMPORT_ALLOW_PRIVATE = env.flag("MEDSEG_URL_IMPORT_ALLOW_PRIVATE", default=False)
MEDSEG_URL_IMPORT_SECONDS = env.integer("MEDSEG_URL_IMPORT_SECONDS", 4 * 3600, minimum=1)
MEDSEG_MODEL_CACHE_BYTES = env.integer("MEDSEG_MODEL_CACHE_MB", 2_000, minimum=1) * 2**20
MEDSEG_OBJECT_CACHE_BYTES = env.integer("MEDSEG_OBJECT_CACHE_MB", 50_000, minimum=1) * 2**20
# A job without a heartbeat for so long has lost its worker. During long calls a thread beats every five seconds.
MEDSEG_STALE_SECONDS = env.integer("MEDSEG_STALE_SECONDS", 60, minimum=10)
# The time between two uploads of a checkpoint.
MEDSEG_CHECKPOINT_SECONDS = env.integer("MEDSEG_CHECKPOINT_SECONDS", 60, minimum=1)
# The web process answers so many requests at once. Further ones wait.
MEDSEG_REQUESTS_AT_ONCE = env.integer("MEDSEG_REQUESTS_AT_ONCE", 8, minimum=1)
MEDSEG_DECODED_CACHE_BYTES = env.integer("MEDSEG_DECODED_CACHE_MB", 50_000, minimum=1) * 2**20
# The default time budget of a training.
MEDSEG_TRAINING_SECONDS = env.integer("MEDSEG_TRAINING_SECONDS", 300, minimum=10)
FILE_UPLOAD_TEMP_DIR = str(TMP_DIR)
FILE_UPLOAD_MAX_MEMORY_SIZE = 2 * 2**20
DATA_UPLOAD_MAX_MEMORY_SIZE = 5 * 2**20
for _folder in (DATA_DIR, TMP_DIR, CACHE_DIR, MEDIA_ROOT, STATIC_ROOT):
    _folder.mkdir(parents=True, exist_ok=True)

# --- Redis, Celery, WebSockets ----------------------------------------------------------------------------------------
PORT = env.integer("PORT", 8000, minimum=1)
# The port of the embedded Redis that belongs to PORT. scripts/run.py computes the same number.
MEDSEG_REDIS_PORT = env.integer("MEDSEG_REDIS_PORT", PORT + 8379 if PORT + 8379 < 2**16 else PORT - 8379, minimum=1)
REDIS_URL = env.text("REDIS_URL", f"redis://127.0.0.1:{MEDSEG_REDIS_PORT}/0")
CHANNEL_LAYERS = {
    "default": {"BACKEND": "channels_redis.pubsub.RedisPubSubChannelLayer", "CONFIG": {"hosts": [REDIS_URL]}}
}
# Celery's messages may go through another broker, such as RabbitMQ. Live events and waiting requests stay with Redis.
CELERY_BROKER_URL = env.text("CELERY_BROKER_URL", REDIS_URL)
CELERY_TASK_IGNORE_RESULT = True
CELERY_TASK_ACKS_LATE = True
CELERY_TASK_REJECT_ON_WORKER_LOST = True
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
if DATABASES["default"]["ENGINE"] == "django.db.backends.sqlite3":
    # Workers keep their connection for ten tasks. The last connection to close writes the whole WAL back, which took
    # longer than all other queries of an inference together. A connection to a file cannot go stale.
    CELERY_DB_REUSE_MAX = 10
CELERY_WORKER_HIJACK_ROOT_LOGGER = True
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
if CELERY_BROKER_URL.startswith("amqp"):
    # A message counts as sent only once the broker confirms that it has it.
    CELERY_BROKER_TRANSPORT_OPTIONS: dict[str, Any] = {"confirm_publish": True}
    # By default RabbitMQ cuts off a worker that keeps a message for half an hour, as every longer training does.
    _queue_arguments = {"x-consumer-timeout": 16 * 24 * 3600 * 1000}
else:
    # Redis delivers a message again after this time. That is harmless, because a worker has to claim the row first.
    CELERY_BROKER_TRANSPORT_OPTIONS = {"visibility_timeout": 3600}
    _queue_arguments = {}
CELERY_TASK_QUEUES = [
    Queue(name, routing_key=name, queue_arguments=_queue_arguments)
    for name in ("ingest", "infer", "train", "housekeeping")
]
# This queue has short tasks. Whichever of its two workers is free takes them.
CELERY_TASK_DEFAULT_QUEUE = "housekeeping"
CELERY_TASK_ROUTES = {
    "datasets.tasks.check_dataset": {"queue": "ingest"},
    "inference.tasks.expand_batch": {"queue": "ingest"},
    "medseg_site.tasks.remove_remains": {"queue": "ingest"},
    "medseg_site.tasks.mend_recent_manifests": {"queue": "ingest"},
    "models_app.tasks.train_model": {"queue": "train"},
    # The worker of this queue has PyTorch loaded, and is not busy for hours as the one that trains.
    "models_app.tasks.keep_weights": {"queue": "infer"},
    "inference.tasks.run_inference": {"queue": "infer"},
    "inference.tasks.work_on_batches": {"queue": "infer"},
}
_reap_every = min(15, MEDSEG_STALE_SECONDS // 2)
CELERY_BEAT_SCHEDULE = {
    "mend-recent-manifests": {
        "task": "medseg_site.tasks.mend_recent_manifests",
        "schedule": 300,
        "options": {"expires": 300},
    },
    "forget-request-keys": {
        "task": "accounts.tasks.forget_request_keys",
        "schedule": 3600,
        "options": {"expires": 3600},
    },
    "clean-uploads": {"task": "uploads.tasks.clean_uploads", "schedule": 3600, "options": {"expires": 3600}},
    "reap-datasets": {
        "task": "datasets.tasks.reap_datasets",
        "schedule": _reap_every,
        "options": {"expires": _reap_every},
    },
    "reap-models": {
        "task": "models_app.tasks.reap_models",
        "schedule": _reap_every,
        "options": {"expires": _reap_every},
    },
    "reap-inferences": {
        "task": "inference.tasks.reap_inferences",
        "schedule": _reap_every,
        "options": {"expires": _reap_every},
    },
}

# --- API --------------------------------------------------------------------------------------------------------------
REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": [
        "medseg_site.shared.base.local_user.LocalUserAuthentication",
        "rest_framework.authentication.TokenAuthentication",
        "rest_framework.authentication.SessionAuthentication",
    ],
    "DEFAULT_PERMISSION_CLASSES": ["rest_framework.permissions.IsAuthenticated"],
    "DEFAULT_PAGINATION_CLASS": "medseg_site.shared.web.api.Pagination",
    "DEFAULT_FILTER_BACKENDS": [
        "django_filters.rest_framework.DjangoFilterBackend",
        "rest_framework.filters.SearchFilter",
        "rest_framework.filters.OrderingFilter",
    ],
    "DEFAULT_CONTENT_NEGOTIATION_CLASS": "medseg_site.shared.web.requests.Negotiation",
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_SCHEMA_CLASS": "medseg_site.shared.web.openapi.Schema",
    "EXCEPTION_HANDLER": "drf_standardized_errors.handler.exception_handler",
    "TEST_REQUEST_DEFAULT_FORMAT": "json",
}
DRF_STANDARDIZED_ERRORS = {
    "EXCEPTION_HANDLER_CLASS": "medseg_site.shared.web.api.ExceptionHandler",
    "ALLOWED_ERROR_STATUS_CODES": ["400", "401", "403", "404", "409", "413", "415"],
    "ERROR_SCHEMAS": {
        "409": "medseg_site.shared.web.openapi.WrongStateResponseSerializer",
        "413": "medseg_site.shared.web.openapi.TooLargeResponseSerializer",
    },
}
SPECTACULAR_SETTINGS = {
    "TITLE": "MedSeg Platform",
    "DESCRIPTION": "Upload a dataset, train a segmentation model, segment images. "
    "Research use only, not a medical device. "
    "A request that would have to wait too long is answered 429 with Retry-After.",
    "VERSION": "1",
    "SERVE_INCLUDE_SCHEMA": False,
    "SWAGGER_UI_DIST": "SIDECAR",
    "SWAGGER_UI_FAVICON_HREF": "SIDECAR",
    "REDOC_DIST": "SIDECAR",
    "COMPONENT_SPLIT_REQUEST": True,
    "ENUM_NAME_OVERRIDES": {
        "DatasetStatusEnum": ["uploaded", "ready", "error"],
        "ModelStatusEnum": ["queued", "training", "completed", "failed", "cancelled"],
        "InferenceStatusEnum": ["queued", "running", "completed", "failed", "cancelled"],
        "ValidationErrorEnum": "drf_standardized_errors.openapi_serializers.ValidationErrorEnum.choices",
        "ClientErrorEnum": "drf_standardized_errors.openapi_serializers.ClientErrorEnum.choices",
        "ServerErrorEnum": "drf_standardized_errors.openapi_serializers.ServerErrorEnum.choices",
        "ErrorCode404Enum": "drf_standardized_errors.openapi_serializers.ErrorCode404Enum.choices",
    },
    "POSTPROCESSING_HOOKS": ["drf_standardized_errors.openapi_hooks.postprocess_schema_enums"],
}

# --- The rest -------------------------------------------------------------------------------------------------------
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": f"django.contrib.auth.password_validation.{name}"}
    for name in ("UserAttributeSimilarityValidator", "MinimumLengthValidator", "CommonPasswordValidator")
]
LOGIN_URL = "admin:login"
LANGUAGE_CODE = "en-us"
TIME_ZONE = "UTC"
USE_I18N = False
USE_TZ = True
X_FRAME_OPTIONS = "DENY"
SECURE_REFERRER_POLICY = "same-origin"
SILENCED_SYSTEM_CHECKS: list[str] = []
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(name)s: %(message)s"}},
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"handlers": ["console"], "level": env.text("LOG_LEVEL", "INFO")},
}
