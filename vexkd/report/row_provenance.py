"""Where the rows of a table came from, as their provenance.json says, and which row was not made as the others.

`record` is the content of a run's provenance.json: `seeds`, the training record of each seed, and `evaluation`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vexkd import seal

if TYPE_CHECKING:
    from vexkd.report.results import FinishedRun


def commits(record: dict[str, Any]) -> list[str]:
    """The distinct commits that trained and scored a run, training first; "unknown" outside a checkout."""
    return list(dict.fromkeys(part.get("commit") or "unknown" for part in _by_some_code(record)))


def code(record: dict[str, Any]) -> list[str]:
    """What distinguishes the code that trained and scored a run: hashes of the package, or commits in older records."""
    return list(dict.fromkeys(part.get("package") or part.get("commit") or "unknown" for part in _by_some_code(record)))


def dirty(record: dict[str, Any]) -> bool:
    """Whether the checkout had uncommitted changes at any time."""
    return any(part.get("dirty") for part in _by_some_code(record))


def _by_some_code(record: dict[str, Any]) -> list[dict[str, Any]]:
    """The parts that say which code made a run: every attempt at every seed's training, and the scoring."""
    trainings = [attempt for seed in record["seeds"].values() for attempt in (seed.get("attempts") or [seed])]
    return [*trainings, record["evaluation"]]


def short(commits: list[str]) -> str:
    """Commits as a table's note shows them."""
    return ", ".join(commit[:10] for commit in commits)


def usual_commits(records: Iterable[dict[str, Any]]) -> list[str]:
    """The commits of the rows that were made by the code that most rows were made by."""
    records = list(records)
    usual = _usual([_code_text(record) for record in records])
    like_most = [record for record in records if _code_text(record) == usual]
    return list(dict.fromkeys(commit for record in like_most for commit in commits(record)))


def _usual(values: list[str]) -> str:
    """What most rows have; the first of equals."""
    return Counter(values).most_common(1)[0][0]


def data(record: dict[str, Any]) -> str:
    """What a run was trained and scored on: hash of the prepared data, version and split."""
    hashes = {str(seed.get("inputs", {}).get("infos")) for seed in record["seeds"].values()}
    scored = record["evaluation"].get("dataset") or {}
    return " ".join([*sorted(hashes), *(str(scored.get(key)) for key in ("version", "split"))])


def environment(record: dict[str, Any]) -> str:
    """Versions of what decides results, as text: of every seed's training and of the scoring."""
    parts = [*record["seeds"].values(), record["evaluation"]]
    versions = [{k: v for k, v in (p.get("versions") or {}).items() if k not in ("snakemake", "dvc")} for p in parts]
    return "; ".join(dict.fromkeys(", ".join(f"{name} {value}" for name, value in each.items()) for each in versions))


def unlike_most(runs: Iterable[FinishedRun]) -> dict[str, str]:
    """Why a row is not like the others: its commit, uncommitted changes, settings, data or versions are not theirs."""
    by_name = {run.name: run for run in runs}
    records = [run.provenance for run in by_name.values()]
    usual = {aspect: _usual([aspect(record) for record in records]) for aspect in (_code_text, data, environment)}
    usual_commit = usual_commits(records)
    reasons = {}
    for name, run in by_name.items():
        record, reason = run.provenance, []
        if _code_text(record) != usual[_code_text] or dirty(record):
            known = not dirty(record) and set(commits(record)) <= set(usual_commit)
            other = f"made by other code than most rows ({', '.join(code(record))})"
            reason.append(other if known else f"made at commit {short(commits(record))}")
        if dirty(record):
            reason.append("with uncommitted changes")
        valid = seal.settings_digests(run.settings)
        if any(training.get("settings_digest") not in valid for training in run.trainings):
            reason.append(f"trained with other settings than {Path(run.params.path).name} has now")
        if data(record) != usual[data]:
            reason.append("made from other data than most rows")
        if environment(record) != usual[environment]:
            news = only_in(environment(record), usual[environment])
            reason.append(f"made with other versions than most rows ({news})")
        if reason:
            reasons[name] = ", ".join(reason)
    return reasons


def _code_text(record: dict[str, Any]) -> str:
    return " ".join(code(record))


def only_in(text: str, other: str) -> str:
    """The parts of a list of versions that are not in another."""
    known = set(other.replace("; ", ", ").split(", "))
    return ", ".join(dict.fromkeys(p for p in text.replace("; ", ", ").split(", ") if p not in known)) or "fewer known"


def on_cpu(training: dict[str, Any]) -> bool:
    """Whether a training record's device is a CPU; else `device` is the name of a GPU."""
    return str(training["device"]).lower().startswith("cpu")


def hardware(record: dict[str, Any]) -> list[str]:
    """What each seed was trained on, in words."""
    words = []
    for training in record["seeds"].values():
        cpu = (training.get("hardware") or {}).get("cpu", training["device"])
        count = training.get("threads")  # imported weights have none
        threads = f" ({count} thread{'' if count == 1 else 's'})" if count else ""
        words.append(f"{cpu}{threads}" if on_cpu(training) else f"{training['devices']} × {training['device']}")
    return list(dict.fromkeys(words))
