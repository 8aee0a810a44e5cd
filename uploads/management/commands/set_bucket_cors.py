"""Allow browsers to send parts to the bucket: `manage.py set_bucket_cors https://medseg.example.org`."""

from __future__ import annotations

from typing import Any

from botocore.exceptions import BotoCoreError, ClientError
from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser

from medseg_site.shared.storage.remote import client


class Command(BaseCommand):
    help = "Sets the CORS rule of the bucket, so that the platform's pages can upload to it. It replaces earlier rules."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("origins", nargs="+", help="Address of the pages, such as https://medseg.example.org")

    def handle(self, *args: Any, **options: Any) -> None:
        if not settings.S3_BUCKET_NAME:
            raise CommandError("S3_BUCKET_NAME is not set, so files go to the local folder, which needs no such rule.")
        origins = [origin.rstrip("/") for origin in options["origins"]]
        rule = {
            "AllowedOrigins": origins,
            "AllowedMethods": ["PUT", "GET", "HEAD"],
            "AllowedHeaders": ["*"],
            "ExposeHeaders": ["ETag"],
            "MaxAgeSeconds": 3600,
        }
        try:
            client().put_bucket_cors(Bucket=settings.S3_BUCKET_NAME, CORSConfiguration={"CORSRules": [rule]})
        except (BotoCoreError, ClientError) as error:
            raise CommandError(f"The bucket {settings.S3_BUCKET_NAME} did not take the rule: {error}") from None
        self.stdout.write(f"{settings.S3_BUCKET_NAME} takes uploads from {', '.join(origins)}.")
