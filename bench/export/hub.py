"""Tables of a run as a dataset on the hub: one parquet file per run, one configuration per suite."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bench.errors import UserError
from bench.export.parquet import write_parquet
from bench.results.store import newest_records
from bench.text import slug

_LICENCE = "apache-2.0"


def upload(folder: Path, repo: str, *, private: bool = False) -> str:
    """Upload records (parquet) and tables (CSV) of a run to a dataset repository; returns its address.

    The repository is created if it is not there; what other runs put there stays. The token is that of
    ``hf auth login`` or of HF_TOKEN. Raises UserError for whatever the hub or the network refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalTokenNotFoundError,
        OfflineModeIsEnabled,
    )

    records = newest_records(folder)
    suite, run = slug(records[0].suite), slug(records[0].run)
    api = HfApi(library_name="ddposink")
    try:
        api.create_repo(repo, repo_type="dataset", private=private, exist_ok=True)
        there = api.list_repo_files(repo, repo_type="dataset")
        with tempfile.TemporaryDirectory() as name:
            stage = Path(name)
            (stage / "data" / suite).mkdir(parents=True)
            write_parquet(records, stage / "data" / suite / f"{run}.parquet")
            if (folder / "tables").is_dir():
                tables = stage / "tables" / suite / run
                shutil.copytree(folder / "tables", tables, ignore=shutil.ignore_patterns("*.md", ".*"))
            (stage / "README.md").write_text(card(repo, {suite, *_suites(there)}), encoding="utf-8")
            message = f"{records[0].suite}: run {records[0].run}"
            done = api.upload_folder(
                folder_path=stage, repo_id=repo, repo_type="dataset", commit_message=message[:200]
            )
    except HFValidationError as error:
        raise UserError(f"--to-hub {repo}: not a repository name", hint="expected ORG/NAME") from error
    except (LocalTokenNotFoundError, OfflineModeIsEnabled) as error:
        raise UserError(
            f"--to-hub {repo}: {_first_line(error)}", hint="log in with: hf auth login"
        ) from error
    except HfHubHTTPError as error:
        raise UserError(
            f"--to-hub {repo}: the hub refuses: {_first_line(error)}", hint=_advice(error)
        ) from error
    except OSError as error:  # also the HTTP client's connection errors
        raise UserError(
            f"--to-hub {repo}: {_first_line(error)}", hint="is the hub reachable from here?"
        ) from error
    return str(getattr(done, "repo_url", "") or f"{api.endpoint}/datasets/{repo}")


def card(repo: str, suites: Iterable[str]) -> str:
    """The dataset card: one configuration per suite, so that tables with other columns do not mix."""
    configs: list[dict[str, Any]] = [
        {"config_name": suite, "data_files": f"data/{suite}/*.parquet"} for suite in sorted(suites)
    ]
    head = [f"license: {_LICENCE}", f"tags: {json.dumps(['benchmark', 'ddposink'])}", "configs:"]
    for config in configs:
        head += [f"- config_name: {json.dumps(config['config_name'])}"]
        head += [f"  data_files: {json.dumps(config['data_files'])}"]
    names = "\n".join(f"- `{config['config_name']}`" for config in configs)
    return (
        "---\n" + "\n".join(head) + f"\n---\n\n# {repo}\n\nBenchmark records, one row per cell; metrics are "
        f"`metric.NAME` with their unit in the column's metadata, and `metric.NAME.reason` says why a value "
        f"is missing. One configuration per suite:\n\n{names}\n"
    )


def _suites(files: Iterable[str]) -> set[str]:
    parts = (path.split("/") for path in files)
    return {
        part[1] for part in parts if len(part) == 3 and part[0] == "data" and part[2].endswith(".parquet")
    }


def _advice(error: Any) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return "log in with a token that may write: hf auth login"
    return "check the name of the repository, and try again later"


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
