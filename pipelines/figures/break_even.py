"""Picture of a sweep: the first token's speed-up over visual tokens, and where pruning pays."""

from pathlib import Path

from multimodal.benchmark.sweep import Sweep, break_even
from multimodal.benchmark.variants import PRUNED, RECORDED
from pipelines.figures.search_history import plt

COLOURS = ("#1b7837", "#2563eb", "#7c3aed", "#ea580c", "#b45309")
TICKS = (0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32)
LEAST = 0.01  # speed-up down to which the area below 1 is drawn
LINES = {PRUNED: "-", RECORDED: "--"}


def plot_break_even(sweep: Sweep, device: str, path: Path) -> None:
    """A panel a batch, a line a retention; below 1, where it is grey, pruning does not pay.

    Args:
        sweep: what was measured.
        device: its name.
        path: of the PNG.
    """
    batches, retentions = sweep.batches, sweep.retentions
    size = (max(5.0, 3.4 * len(batches)), 3.6)
    figure, panels = plt.subplots(1, len(batches), figsize=size, layout="constrained", sharey=True, squeeze=False)
    for axes, batch in zip(panels[0], batches, strict=True):
        for number, retention in enumerate(retentions):
            for variant, style in LINES.items():
                if not (line := sweep.line(batch, retention, variant)):
                    continue
                colour, name = COLOURS[number % len(COLOURS)], f"{retention:g}" + ", recorded" * (variant == RECORDED)
                axes.plot(*zip(*line, strict=True), style, marker="o", markersize=4, color=colour, label=name)
                if at := break_even(line):
                    axes.plot(at, 1, marker="|", markersize=14, color=colour)
        axes.axhline(1, color="black", linewidth=0.8)
        axes.axhspan(LEAST, 1, color="#8a8f98", alpha=0.15, linewidth=0)
        axes.set(xscale="log", yscale="log", title=f"batch {batch}", xlabel="visual tokens")
        tokens = sorted({cell.visual_tokens for cell in sweep.cells})
        axes.set_xticks(tokens, [f"{each:,}" for each in tokens])
        axes.minorticks_off()
        axes.spines[["top", "right"]].set_visible(False)
    speed_ups = [found for cell in sweep.cells for way in LINES if (found := cell.speed_up(way)) is not None]
    low, high = min([0.7, *speed_ups]), max([1.4, *speed_ups])
    panels[0][0].set_ylim(low * 0.9, high * 1.1)
    ticks = [tick for tick in TICKS if low * 0.9 <= tick <= high * 1.1]
    panels[0][0].set_yticks(ticks, [f"{tick:g}×" for tick in ticks])
    panels[0][0].set_ylabel("speed-up of the first token")
    panels[0][0].text(0.03, 0.03, "pruning does not pay", transform=panels[0][0].transAxes, fontsize=8, color="#555")
    figure.suptitle(f"{sweep.model} on {device}", fontsize=10)
    drawn = [axes.get_legend_handles_labels() for axes in panels[0]]
    named = {label: handle for handles, labels in drawn for handle, label in zip(handles, labels, strict=True)}
    figure.legend(
        named.values(), named.keys(), title="retention", loc="outside right center", frameon=False, fontsize=8
    )
    figure.savefig(path, dpi=120)
    plt.close(figure)
