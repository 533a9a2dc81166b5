"""Does a test fail when a mesh is damaged? Faults of one line, each with the test that has to notice it.

python tests/mutations.py [WORD ...]: those whose name has one of the words, or all; `make mutations`.
Each is made in a copy of the sources. Exit 1 where a damage goes unnoticed, or its line is no longer there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
TREES = ("hvdlm", "tests", "preprocessing", "perf", "jobs", "configs")
WITHIN = ("preprocessing", "perf", "jobs")  # of the package, though they lie beside it
LIMIT_S = 120


class Damage(NamedTuple):
    """`old` stands in `file` once; with `new` in its place `test` must fail."""

    name: str
    file: str
    old: str
    new: str
    test: str


STAGES = "tests/test_mesh_training.py::test_stages_give_the_weights_of_one_process_bit_for_bit"
TENSOR = "tests/test_mesh_training.py::test_tensor_ranks_give_the_weights_of_one_process_nearly"
GRADIENTS = "tests/test_tensor_parallel.py::test_losses_and_gradients_are_those_of_one_process"
STEP, PIPELINE, LAYERS = "hvdlm/train/step.py", "hvdlm/parallel/pipeline.py", "hvdlm/parallel/tensor_layers.py"
SAVER, PARTS, ZERO = "hvdlm/checkpoint/saver.py", "hvdlm/checkpoint/parts.py", "hvdlm/sync/zero.py"
DAMAGES = [
    Damage(
        "the loss is weighed by all ranks instead of replicas",
        STEP,
        "self.sync.weight(share.targets, share.all_targets) * self._scale",
        "self.sync.weight(share.targets, share.all_targets) * self._scale * self.axes.data.size / self.world.size",
        f"{STAGES}[2-2-pipeline: 2-True]",
    ),
    Damage(
        "the tied weight's gradient is not added",
        PIPELINE,
        "self._add_tied(self._take(Key(TIED_GRADIENT, 0, number)))",
        "self._take(Key(TIED_GRADIENT, 0, number))",
        f"{STAGES}[2-2-pipeline: 2-True]",
    ),
    Damage(
        "the tied weight's gradient travels with the last micro-batch alone",
        PIPELINE,
        "return self.tied.each or number == num - 1",
        "return number == num - 1",
        f"{STAGES}[2-2-pipeline: 2-True]",
    ),
    Damage(
        "the last stage keeps an old tied weight",
        STEP,
        "            self.sync.step()\n            self.pipeline.share_tied()",
        "            self.sync.step()",
        f"{STAGES}[2-2-pipeline: 2-True]",
    ),
    Damage(
        "the norm is that of one stage",
        STEP,
        "squares = self._over_model(squares)",
        "pass",
        f"{STAGES}[2-2-pipeline: 2-False]",
    ),
    Damage(
        "what tensor ranks hold alike counts once for each",
        STEP,
        "held = [name in cuts and not cuts[name].is_whole for name in self.whole.names]",
        "held = [name in cuts for name in self.whole.names]",
        f"{TENSOR}[2-tensor: 2]",
    ),
    Damage(
        "gradients of parts of sequences are not added up",
        STEP,
        "self.sync.complete(names, lambda part: summed(part, self.axes.tensor))",
        "pass",
        f"{TENSOR}[3-tensor: 3, sequence: true]",
    ),
    Damage(
        "what each stage adds up of a loss counts",
        "hvdlm/parallel/axes.py",
        "return self.place.tensor == 0 and self.place.pipeline == self.mesh.pipeline - 1",
        "return self.place.pipeline == self.mesh.pipeline - 1",
        f"{TENSOR}[2-tensor: 2]",
    ),
    Damage(
        "a stage makes room for another tensor rank's part of a sequence",
        STEP,
        "time = len(places(tensor.rank, tensor, time))",
        "time = len(places(0, tensor, time))",
        f"{TENSOR}[4-tensor: 2, sequence: true, pipeline: 2]",
    ),
    Damage(
        "a message is told from others by its stage alone",
        PIPELINE,
        "(key.micro_batch * self.layout.num_stages + key.stage) % TAGS",
        "key.stage % TAGS",
        "tests/test_mesh_training.py::test_each_message_of_a_step_has_a_tag_of_its_own",
    ),
    Damage(
        "gradients of weights are those of another micro-batch",
        "hvdlm/parallel/deferred.py",
        "self._waiting.pop(key, [])",
        "self._waiting.pop(self.key, [])",
        f"{STAGES}[2-2-pipeline: 2, schedule: zero_bubble-False]",
    ),
    Damage(
        "the last backward passes come in the wrong order",
        "hvdlm/parallel/schedule.py",
        'order + [Action("B", 0, n) for n in range(num - ahead, num)]',
        'order + [Action("B", 0, n) for n in reversed(range(num - ahead, num))]',
        "tests/test_schedule.py::test_no_schedule_hangs_or_forgets_anything",
    ),
    Damage(
        "dropout of attention is drawn by a rank's own number of a head",
        "hvdlm/models/transformer/attention.py",
        "start = self.first_head * weights",
        "start = 0 * weights",
        f"{GRADIENTS}[dropout-2-]",
    ),
    Damage(
        "dropout is drawn by a token's place in a rank's part",
        "hvdlm/models/transformer/model.py",
        "view = view._replace(first=here.start)",
        "view = view._replace(first=0)",
        f"{GRADIENTS}[dropout-2-sequence]",
    ),
    Damage(
        "gradients are not added up where what is alike comes to shared layers",
        LAYERS,
        "self.product(enter(x, self._world), self.weight, self.bias)",
        "self.product(x, self.weight, self.bias)",
        f"{GRADIENTS}[plain-2-]",
    ),
    Damage(
        "a bias is added by every rank",
        LAYERS,
        "return found if self.bias is None else found + self.bias",
        "return found if self.bias is None else found + self.bias * self._world.size",
        f"{GRADIENTS}[alibi, biases-2-]",
    ),
    Damage(
        "queries, keys and values are cut as one",
        "hvdlm/parallel/tensor.py",
        "    qkv, out = attention.qkv, attention.out\n    return",
        "    qkv, out = attention.qkv, attention.out\n"
        "    ranges = (slice_of(world.rank, world.size, len(qkv.weight)),)\n    return",
        f"{GRADIENTS}[plain-2-]",
    ),
    Damage(
        "a rank's last id is nobody's",
        LAYERS,
        "is_mine = (targets >= mine.start) & (targets < mine.stop)",
        "is_mine = (targets >= mine.start) & (targets < mine.stop - 1)",
        f"{GRADIENTS}[plain-2-]",
    ),
    Damage(
        "replicas are compared with other stages",
        "hvdlm/train/replicas.py",
        'axes = (digests, ("data",)), (',
        'axes = (digests, ("pipeline", "data")), (',
        "tests/test_replicas.py::test_ranks_are_compared_with_those_that_hold_the_same",
    ),
    Damage(
        "norms of ZeRO's slices lie at its beginning",
        ZERO,
        "mine[part.place // BLOCK :][: len(found)] = found",
        "mine[: len(found)] = found",
        "tests/test_zero.py::test_slices_of_any_sizes_give_the_bits_of_whole_parameters",
    ),
    Damage(
        "ranks do not get each other's new weights",
        ZERO,
        "self._rows[:, columns] = self._traffic.gather_rows(mine[columns])",
        "self._traffic.gather_rows(mine[columns])",
        "tests/test_zero.py::test_slices_of_any_sizes_give_the_bits_of_whole_parameters",
    ),
    Damage(
        "a rank writes its neighbour's share too",
        PARTS,
        "for place in (number, number + 1)) if",
        "for place in (number, number + 2)) if",
        "tests/test_checkpoint_parts.py::test_what_any_ranks_write_any_ranks_read[2-alike]",
    ),
    Damage(
        "a box of a piece is told as one of the whole",
        PARTS,
        "offset = tuple(map(sum, zip(box.offset, piece.box.offset, strict=True)))",
        "offset = box.offset",
        "tests/test_checkpoint_parts.py::test_what_any_ranks_write_any_ranks_read[2-cut]",
    ),
    Damage(
        "a snapshot is what it was taken of",
        PARTS,
        "[s._replace(tensor=b) for s, b in zip(shares, self._buffers, strict=True)]",
        "list(shares)",
        "tests/test_checkpoint_parts.py::test_what_happens_after_begin_changes_nothing",
    ),
    Damage(
        "the record is written before all parts are",
        SAVER,
        "if save is None or SaveState.WRITING in states:",
        "if save is None:",
        "tests/test_checkpoint_parts.py::test_ranks_save_together_and_nobody_commits_before_all_are_done",
    ),
    Damage(
        "a fine-tuned model's means are left out",
        "hvdlm/train/initial_weights.py",
        "means = found.shapes(MEAN) if mean else {}",
        "means = found.shapes(MEAN) if mean and not cuts else {}",
        "tests/test_initial_weights.py::test_the_weights_before_the_first_step_are_the_sources",
    ),
    Damage(
        "a frozen stage makes gradients of what it received",
        PIPELINE,
        "requires_grad_(stage > self.lowest)",
        "requires_grad_(stage < self.lowest)",
        "tests/test_mesh_training.py::test_a_stage_may_have_nothing_to_train",
    ),
    Damage(
        "a mesh begins with the first rows of another run's weights",
        "hvdlm/train/taken_weights.py",
        "cut.of(whole)",
        "whole[: len(self.held[name])]",
        "tests/test_begin_on_mesh.py::test_a_mesh_begins_with_a_published_model_as_one_process",
    ),
]


def copy_sources(folder: Path) -> None:
    for name in TREES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in WITHIN:
        if not (folder / "hvdlm" / name).exists():
            (folder / "hvdlm" / name).symlink_to(folder / name)
    shutil.copy(ROOT / "pyproject.toml", folder)


def outcome(folder: Path, tests: list[str]) -> int:
    """The exit code of pytest: 0 all passed, 1 some failed; 124 where they took too long."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", *tests]
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return 124
    if done.returncode > 1:
        print(done.stdout[-2000:], done.stderr[-2000:])
    return done.returncode


def verdict(damage: Damage, folder: Path) -> str:
    """What became of it: noticed, or what is wrong with this list or with the tests."""
    path = folder / damage.file
    sound = path.read_text(encoding="utf-8")
    if sound.count(damage.old) != 1:
        return f"its line stands {sound.count(damage.old)} times in {damage.file}"
    path.write_text(sound.replace(damage.old, damage.new), encoding="utf-8")
    try:
        code = outcome(folder, [damage.test])
    finally:
        path.write_text(sound, encoding="utf-8")
    return {0: "NOT NOTICED", 1: "noticed", 124: "noticed: the test hangs"}.get(code, f"pytest ended with {code}")


def main(words: list[str]) -> int:
    chosen = [damage for damage in DAMAGES if not words or any(word in damage.name for word in words)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copy_sources(folder)
        if code := outcome(folder, sorted({damage.test for damage in chosen})):
            print(f"without any damage the tests end with {code}")
            return 1
        bad = 0
        for damage in chosen:
            start = time.monotonic()
            found = verdict(damage, folder)
            bad += not found.startswith("noticed")
            print(f"{found:<25} {time.monotonic() - start:5.1f} s  {damage.name}", flush=True)
    print(f"{len(chosen) - bad} of {len(chosen)} damages noticed")
    return 1 if bad or not chosen else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
