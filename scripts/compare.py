"""Compare strategies at equal budget: python scripts/compare.py --strategies grid random hyperband asha --seeds 3"""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path

from _cli import cells, operations, print_table, run
from nas.errors import InputError
from nas.results.record import is_run
from nas.results.report import write_report
from nas.run.sweep import SearchOptions, check_strategies, pass_epochs, search, session
from search_spaces import spaces_with


@dataclasses.dataclass(frozen=True)
class Config(SearchOptions):
    """Search with several strategies from several seeds, each with the same number of epochs; one table.

    A network that several searches chose is trained to the end once; each counts its seconds.
    """

    strategies: tuple[str, ...] = ("grid", "random", "hyperband", "asha")
    """strategies to compare"""
    seeds: int = 1
    """searches of each strategy, seeded --seed, --seed + 1, …"""
    out: Path | None = None
    """folder of the comparison, one run folder a search in it; default: runs/compare-SPACE-DATASET"""
    resume: bool = False
    """go on with the comparison in that folder"""


def main(config: Config) -> None:
    check_strategies(config.strategies, config.supernet)
    if not config.strategies or len(set(config.strategies)) < len(config.strategies):
        raise InputError(f"strategies: {' '.join(config.strategies) or 'none'}: each is to be named once")
    if config.seeds < 1:
        raise InputError(f"seeds: {config.seeds} is below 1")
    dataset = config.data.dataset.replace("/", "_")
    out = config.out or Path("runs") / f"compare-{Path(config.space).stem}-{dataset}"
    if not config.resume and out.is_dir() and any(out.iterdir()):
        raise InputError(f"{out}: holds files already; go on with --resume or choose another --out")
    fields = {f.name: getattr(config, f.name) for f in dataclasses.fields(SearchOptions)}
    if config.total_epochs is None:
        fields["total_epochs"] = pass_epochs(config.plan)
    spaces = spaces_with(config.space)
    runs = []
    with contextlib.ExitStack() as stack:
        stack.enter_context(session(config))
        for k in range(config.seeds):
            for strategy in config.strategies:
                seed = config.plan.seed + k
                fields["plan"] = dataclasses.replace(config.plan, seed=seed)
                folder = out / f"{strategy}-{seed}"
                resume = config.resume and is_run(folder)
                tested = [final for run in runs for final in run.finals]
                options = SearchOptions(**fields)
                runs.append(search(options, strategy, folder, spaces, resume=resume, tested=tested))
    print_table(runs)
    for path in write_report([out], out, operations=operations, cells=cells).files:
        print(path)
    if not any(result.best for result in runs):
        raise InputError(f"{out}: no trial could be measured; trials.jsonl in its run folders says why")


if __name__ == "__main__":
    run(main, compute=True)
