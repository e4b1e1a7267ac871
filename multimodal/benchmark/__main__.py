"""The command: published shapes with random weights, unpruned against pruned, on this machine.

python -m multimodal.benchmark                                        # the four shapes of the README, five minutes
python -m multimodal.benchmark llava_1_5_7b qwen2_5_vl_7b@1008x1008 --batches 1 4
python -m multimodal.benchmark llava_next_7b --sweep --sizes 336 672 1344
python -m multimodal.benchmark --small                                # few and narrow layers, to try it anywhere
python -m multimodal.benchmark --check benchmarks                     # against the table that is kept
"""

import argparse
import logging
import sys
import time
from functools import partial
from pathlib import Path

import transformers
from pydantic import ValidationError

from multimodal.benchmark.comparing import fallen, ratios
from multimodal.benchmark.device import device_kind
from multimodal.benchmark.report import Report
from multimodal.benchmark.run import Arguments, run
from multimodal.benchmark.tables import page
from multimodal.errors import FlowpruneError, one_sentence
from multimodal.loading import chosen_device

USER_ERROR, FELL = 2, 1


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    options = vars(_parser().parse_args(arguments))
    out, check, tolerance = (options.pop(name) for name in ("out", "check", "tolerance"))
    given = {name: value for name, value in options.items() if value not in (None, [])}
    _quieten()
    try:
        if check is not None:
            return _check(Path(check), tolerance, options["device"])
        report = run(Arguments(**given), _say, partial(_write, Path(out)))
        print(page(report))
        for path in _write(Path(out), report):
            print(f"written: {path}")
    except ValidationError as error:
        print(f"error: {one_sentence(error)}", file=sys.stderr)
        return USER_ERROR
    except FlowpruneError as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR
    return 0


def _parser() -> argparse.ArgumentParser:
    lines = (__doc__ or "").splitlines()
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m multimodal.benchmark", None, "\n".join(lines), formatter_class=style)
    parser.add_argument(
        "shapes", nargs="*", metavar="MODEL[@HEIGHTxWIDTH]", help="names or paths of conf/model's files"
    )
    parser.add_argument("--retention", type=float, help="of the pruned variants (0.1)")
    parser.add_argument("--config", metavar="FILE", help="a pruning.json instead of VFlowOpt at its released values")
    parser.add_argument("--batches", type=int, nargs="+", help="prompts that are read together (1 4 16)")
    parser.add_argument("--text-tokens", type=int, help="of a prompt (64)")
    parser.add_argument("--new-tokens", type=int, help="that decoding is timed over (16)")
    parser.add_argument("--repeats", type=int, help="measurements of each; the median counts (7)")
    parser.add_argument("--minutes", type=float, help="to stop repeating after; what is left out then says so")
    parser.add_argument("--small", action="store_true", help="few and narrow layers, to try the command anywhere")
    parser.add_argument("--device", help="auto, cpu, cuda, cuda:1 … (auto)")
    parser.add_argument("--dtype", help="auto, float32, bfloat16 or float16 (auto: bfloat16 on a GPU)")
    parser.add_argument("--attention", help="eager, sdpa or flash_attention_2 (sdpa)")
    parser.add_argument("--sweep", action="store_true", help="of one model: where pruning pays")
    parser.add_argument("--sizes", nargs="+", metavar="HEIGHTxWIDTH", help="of the sweep's images (336 672 1008)")
    parser.add_argument("--retentions", type=float, nargs="+", help="of the sweep (0.5 0.25 0.1)")
    parser.add_argument("--out", metavar="FOLDER", default=".", help="where KIND.json and KIND.md go (here)")
    parser.add_argument("--check", metavar="FOLDER", help="measure what FOLDER/KIND.json was, and compare the ratios")
    parser.add_argument("--tolerance", type=float, default=0.25, help="by which a ratio may be worse (0.25)")
    return parser


def _write(folder: Path, report: Report) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    written = {folder / f"{report.kind}.json": report.model_dump_json(indent=1) + "\n"}
    written[folder / f"{report.kind}.md"] = page(report)
    for path, text in written.items():
        path.write_text(text, encoding="utf-8")
    return list(written)


def _check(folder: Path, tolerance: float, device: str | None) -> int:
    """Measure again what a table holds; returns whether a ratio fell.

    Raises:
        FlowpruneError: there is no table for this kind of device.
    """
    kind = device_kind(chosen_device(device or "auto"))
    path = folder / f"{kind}.json"
    if not path.is_file():
        raise FlowpruneError(
            f"There is no table for {kind}: make it with `python -m multimodal.benchmark --out {folder}`, look at it "
            "and commit it."
        )
    kept = Report.model_validate_json(path.read_text(encoding="utf-8"))
    worse: dict[str, str] = {}
    for again in (False, True):  # what fell once may have been something else that this machine did
        report = run(Arguments(**kept.arguments), _say)
        print(page(report))
        found = fallen(ratios(report), ratios(kept), tolerance)
        worse = {name: found[name] for name in worse if name in found} if again else found
        if not worse:
            break
    for sentence in worse.values():
        print(sentence)
    print(f"{len(worse)} of {len(ratios(kept))} ratios are worse than in {path}.")
    return FELL if worse else 0


def _say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def _quieten() -> None:
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("torch").setLevel(logging.ERROR)


if __name__ == "__main__":
    sys.exit(main())
