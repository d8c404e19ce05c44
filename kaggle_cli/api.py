"""What the Kaggle CLI does not print, from the library under it, as one line of JSON; ``client.ask`` runs this file.

    python -P kaggle_cli/api.py COMPETITION [DATASET KERNEL ...]

It is a process of its own, as the CLI is: the library logs in when it is imported. Times are in UTC.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

from kaggle import api
from kagglesdk.datasets.types.dataset_api_service import ApiGetDatasetRequest, ApiGetDatasetStatusRequest
from kagglesdk.kernels.types.kernels_api_service import ApiGetKernelRequest, ApiGetKernelSessionStatusRequest
from requests import HTTPError

SUBMISSIONS = 50


def existing(look: Callable[..., Any], *arguments: str) -> Any:
    """The answer of ``look``; None where Kaggle has no such thing for this user (403, 404)."""
    try:
        return look(*arguments)
    except HTTPError as error:
        if error.response is not None and error.response.status_code in (403, 404):
            return None
        raise


def submissions(competition: str) -> list[dict[str, Any]]:
    """The newest submissions, newest first, with the reason of a failure, which the CLI 2.2.4 leaves out."""
    found = api.competition_submissions(competition, page_size=SUBMISSIONS) or []
    return [
        {
            "ref": str(each.ref),
            "date": minute(each.date),
            "description": each.description,
            "status": each.status.name.lower(),
            "reason": each.error_description,
            "public": each.public_score,
            "private": each.private_score,
        }
        for each in found
        if each
    ]


def dataset(owner: str, slug: str) -> dict[str, Any]:
    """State and versions of a dataset, newest first."""
    with api.build_kaggle_client() as kaggle:
        service = kaggle.datasets.dataset_api_client
        asked, status = ApiGetDatasetRequest(), ApiGetDatasetStatusRequest()
        asked.owner_slug = status.owner_slug = owner
        asked.dataset_slug = status.dataset_slug = slug
        found, state = service.get_dataset(asked), service.get_dataset_status(status).status
    versions = [(each.version_number, minute(each.creation_date), each.version_notes or "") for each in found.versions or []]
    return {
        "name": f"{owner}/{slug}",
        "state": state.name.lower(),
        "version": found.current_version_number,
        "versions": sorted(versions, reverse=True),
    }


def kernel(owner: str, slug: str) -> dict[str, Any]:
    """State and version of a kernel, and what its latest run failed by."""
    with api.build_kaggle_client() as kaggle:
        service = kaggle.kernels.kernels_api_client
        asked, status = ApiGetKernelRequest(), ApiGetKernelSessionStatusRequest()
        asked.user_name = status.user_name = owner
        asked.kernel_slug = status.kernel_slug = slug
        metadata, run = service.get_kernel(asked).metadata, service.get_kernel_session_status(status)
    return {
        "name": f"{owner}/{slug}",
        "state": run.status.name.lower(),
        "message": run.failure_message,
        "version": metadata and metadata.current_version_number,
        "last_run": minute(metadata and metadata.last_run_time),
        "inputs": [*metadata.dataset_data_sources, *metadata.kernel_data_sources] if metadata else [],
    }


def allowance(competition: str) -> dict[str, Any]:
    """Submissions that are left today, and hours of GPU that are left this week."""
    quota = api.quota_view()
    limits = existing(api.competition_get_submission_limits, competition)
    hours = quota.gpu_quota and [
        each.total_seconds() / 3600 for each in (quota.gpu_quota.time_used, quota.gpu_quota.total_time_allowed)
    ]
    return {
        "submissions": limits and limits.num_allowed_now,
        "gpu_hours": hours and [max(0.0, hours[1] - hours[0]), hours[1]],
        "reset": minute(quota.quota_refresh_time),
    }


def minute(date: Any) -> str:
    """A date to the minute; empty where there is none."""
    return date.strftime("%Y-%m-%d %H:%M") if date else ""


def main(competition: str, dataset_slug: str = "", *kernel_slugs: str) -> None:
    """Prints the submissions and, with further arguments, the state of everything else."""
    owner = api.get_config_value(api.CONFIG_NAME_USER)
    if not owner:
        sys.exit("Authentication required")
    answer: dict[str, Any] = {"owner": owner, "submissions": existing(submissions, competition)}
    if dataset_slug:
        answer["dataset"] = existing(dataset, owner, dataset_slug)
        answer["kernels"] = [found for slug in kernel_slugs if (found := existing(kernel, owner, slug))]
        answer["allowance"] = allowance(competition)
    print(json.dumps(answer))


if __name__ == "__main__":
    main(*sys.argv[1:])
