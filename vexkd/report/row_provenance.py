"""Where the rows of a table came from, as their provenance.json says, and which row was not made as the others."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from vexkd import seal
from vexkd.settings import Params


def commits(origin: dict[str, Any]) -> list[str]:
    """The distinct commits that trained and scored a run, training first; "unknown" outside a checkout."""
    return list(dict.fromkeys(record.get("commit") or "unknown" for record in _records(origin)))


def code(origin: dict[str, Any]) -> list[str]:
    """What distinguishes the code that trained and scored a run: hashes of the package, or commits in older records."""
    return list(
        dict.fromkeys(record.get("package") or record.get("commit") or "unknown" for record in _records(origin))
    )


def dirty(origin: dict[str, Any]) -> bool:
    return any(record.get("dirty") for record in _records(origin))


def _records(origin: dict[str, Any]) -> list[dict[str, Any]]:
    """What says which code made a run: every attempt at every seed's training, and the scoring."""
    trainings = [record for seed in origin["seeds"].values() for record in (seed.get("attempts") or [seed])]
    return [*trainings, origin["evaluation"]]


def short(commits: list[str]) -> str:
    return ", ".join(commit[:10] for commit in commits)


def usual_commits(origins: dict[str, dict[str, Any]]) -> list[str]:
    """The commits of the rows that were made by the code that most rows were made by."""
    usual = _usual([_code_text(origin) for origin in origins.values()])
    rows = [origin for origin in origins.values() if _code_text(origin) == usual]
    return list(dict.fromkeys(commit for origin in rows for commit in commits(origin)))


def _usual(values: list[str]) -> str:
    """What most rows have; the first of equals."""
    return Counter(values).most_common(1)[0][0]


def data(origin: dict[str, Any]) -> str:
    """What a run was trained and scored on: hash of the prepared data, version and split."""
    hashes = {str(seed.get("inputs", {}).get("infos")) for seed in origin["seeds"].values()}
    scored = origin["evaluation"].get("dataset") or {}
    return " ".join([*sorted(hashes), *(str(scored.get(key)) for key in ("version", "split"))])


def environment(origin: dict[str, Any]) -> str:
    """Versions of what decides results, as text: of every seed's training and of the scoring."""
    records = [*origin["seeds"].values(), origin["evaluation"]]
    versions = [{k: v for k, v in (r.get("versions") or {}).items() if k not in ("snakemake", "dvc")} for r in records]
    return "; ".join(dict.fromkeys(", ".join(f"{name} {value}" for name, value in each.items()) for each in versions))


def marked(params: Params, origins: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Why a row is not like the others: commit, uncommitted changes, settings, data or versions are not theirs."""
    usual = {how: _usual([how(origin) for origin in origins.values()]) for how in (_code_text, data, environment)}
    usual_commit = usual_commits(origins)
    reasons = {}
    for run, origin in origins.items():
        asked = seal.settings_digests(params.run(run))
        reason = []
        if _code_text(origin) != usual[_code_text] or dirty(origin):
            known = not dirty(origin) and set(commits(origin)) <= set(usual_commit)
            other = f"made by other code than most rows ({', '.join(code(origin))})"
            reason.append(other if known else f"made at commit {short(commits(origin))}")
        if dirty(origin):
            reason.append("with uncommitted changes")
        if any(seed.get("settings_digest") not in asked for seed in origin["seeds"].values()):
            reason.append(f"trained with other settings than {Path(params.path).name} has now")
        if data(origin) != usual[data]:
            reason.append("made from other data than most rows")
        if environment(origin) != usual[environment]:
            found = news(environment(origin), usual[environment])
            reason.append(f"made with other versions than most rows ({found})")
        if reason:
            reasons[run] = ", ".join(reason)
    return reasons


def _code_text(origin: dict[str, Any]) -> str:
    return " ".join(code(origin))


def news(text: str, usual: str) -> str:
    """The parts of a list that are not in another."""
    known = set(usual.replace("; ", ", ").split(", "))
    return ", ".join(dict.fromkeys(p for p in text.replace("; ", ", ").split(", ") if p not in known)) or "fewer known"


def on_cpu(seed: dict[str, Any]) -> bool:
    """Whether a training record's device is a CPU; else `device` is the name of a GPU."""
    return str(seed["device"]).lower().startswith("cpu")


def hardware(origin: dict[str, Any]) -> list[str]:
    """What each seed was trained on, in words."""
    words = []
    for seed in origin["seeds"].values():
        cpu = (seed.get("hardware") or {}).get("cpu", seed["device"])
        count = seed.get("threads")  # imported weights have none
        threads = f" ({count} thread{'' if count == 1 else 's'})" if count else ""
        words.append(f"{cpu}{threads}" if on_cpu(seed) else f"{seed['devices']} × {seed['device']}")
    return list(dict.fromkeys(words))
