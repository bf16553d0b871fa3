"""Does drift off the anchor foretell the turn of the refusal direction and the fall of the probe?

    python experiments/basin/foretell.py runs/basin/watched runs/basin/watched-asft

The runs watched activations and probe, and ``anchortune drift`` looked at them: see README.md.
By run and step: the update's energy, its part off the anchor and inside, the refusal direction's
cosine with the one before training, and the probe's fall. Then, within each run, how well each
energy at one look ranks the *change* to the next look: a foretelling, for over a whole run all of
them grow. The rank correlation (Spearman) is a mean over runs with the least and the greatest of
them. ``--record`` writes all of it as JSON, ``--plot`` the fall and the turn over the energies.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from anchortune.files import atomic_path, write_text
from anchortune.report.drift import Drift
from anchortune.report.sweep_drawing import styles

CAUSES = ("energy", "off", "inside")
EFFECTS = {"turn": "turn of the refusal direction", "fall": "fall of the probe, nats"}


def looks(run: Path) -> list[dict[str, float]]:
    """What is known of a run at each step that was looked at, by rising step."""
    drift = Drift.model_validate_json((run / "drift/drift.json").read_text("utf-8"))
    weights = {place.step: place.whole.anchor for place in drift.places if place.step is not None}
    found: dict[int, dict[str, float]] = {}
    for line in (run / "log.jsonl").read_text("utf-8").splitlines():
        row = json.loads(line)
        shares = weights.get(row.get("step"))
        if shares is not None:
            energy = shares.energy
            start = {"step": row["step"], "energy": energy, "off": energy * shares.off}
            at = found.setdefault(row["step"], start | {"inside": energy * shares.inside})
            if "refusal/cosine" in row:
                at["turn"] = 1.0 - row["refusal/cosine"]
                at["auc"] = row["refusal/auc"]
            if "probe/fall" in row:
                at["fall"] = row["probe/fall"]
    return [at for _, at in sorted(found.items()) if "turn" in at and "fall" in at]


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """The rank correlation of two series without ties; nan of fewer than three places."""
    if len(first) < 3:
        return float("nan")
    ranks = [np.argsort(np.argsort(values)) for values in (first, second)]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def foretold(runs: dict[str, list[dict[str, float]]]) -> list[dict[str, object]]:
    """By cause and effect, the rank correlation of the cause's growth with the effect's next."""
    rows: list[dict[str, object]] = []
    for effect in EFFECTS:
        for cause in CAUSES:
            within = {}
            for name, at in runs.items():
                grown = np.diff([0.0, *(look[cause] for look in at)])
                moved = np.diff([0.0, *(look[effect] for look in at)])
                within[name] = spearman(grown[:-1].tolist(), moved[1:].tolist())
            rows.append({"effect": effect, "cause": cause, "by_run": within})
    return rows


def plot(runs: dict[str, list[dict[str, float]]], path: Path) -> None:
    """Draws each effect over the update's energy, all of it and the part off the anchor."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 6.2), layout="constrained")
    looked_at = styles(list(runs))
    panels = figure.subplots(len(EFFECTS), 2, sharex="col", sharey="row")
    causes = {"energy": "energy of the update, ‖U‖²", "off": "its part off the anchor"}
    for line, (effect, effect_name) in zip(panels, EFFECTS.items(), strict=True):
        line[0].set_ylabel(effect_name)
        for axes, cause in zip(line, causes, strict=True):
            for name, at in runs.items():
                look = looked_at[name]
                axes.plot(
                    [one[cause] for one in at], [one[effect] for one in at], label=name,
                    color=look.colour, marker=look.marker, ms=4, lw=1.2,
                )  # fmt: skip
            axes.set_xscale("log")
            axes.grid(alpha=0.25)
            axes.spines[["top", "right"]].set_visible(False)
    for axes, cause_name in zip(panels[-1], causes.values(), strict=True):
        axes.set_xlabel(cause_name)
    panels[0, 0].legend(frameon=False, fontsize=8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150, format=path.suffix[1:])


def main() -> None:
    """Prints both tables as Markdown."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path, help="of train, after drift")
    parser.add_argument("--record", type=Path, help="where to write it as JSON")
    parser.add_argument("--plot", type=Path, help="where to draw it: .png or .svg")
    given = parser.parse_args()
    runs = {run.name: looks(run) for run in given.runs}
    print("| run | step | ‖U‖² | off | inside | turn | separates | fall |")
    print("|:---|---:|---:|---:|---:|---:|---:|---:|")
    for name, at in runs.items():
        for look in at:
            energies = " | ".join(f"{look[cause]:.3g}" for cause in CAUSES)
            print(
                f"| {name} | {look['step']:.0f} | {energies} | {look['turn']:.3f} "
                f"| {look['auc']:.3f} | {look['fall']:.2f} |"
            )
    rows = foretold(runs)
    print("\n| growth of | before the next | rank correlation, mean (least to greatest run) |")
    print("|:---|:---|---:|")
    for row in rows:
        values = list(row["by_run"].values())  # type: ignore[attr-defined]
        print(
            f"| {row['cause']} | {EFFECTS[str(row['effect'])]} "
            f"| {np.mean(values):+.2f} ({min(values):+.2f} to {max(values):+.2f}) |"
        )
    if given.record is not None:
        write_text(given.record, json.dumps({"looks": runs, "foretold": rows}, indent=1) + "\n")
    if given.plot is not None:
        plot(runs, given.plot)


if __name__ == "__main__":
    main()
