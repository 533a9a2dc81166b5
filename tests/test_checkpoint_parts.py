"""Checkpoints of boxes: any ranks write them, any ranks read them, and nobody is led astray by what is in them."""

import copy
import gc
import hashlib
import json
import logging
import math
import os
import random
import shutil
import threading
import time
import weakref
from pathlib import Path

import pytest
import torch
from harness import STATE, run_training
from saved import PART, opened_files, tensors_in, write_record

from hvdlm import checkpoint
from hvdlm.checkpoint import parts as part_files
from hvdlm.checkpoint.boxes import Box, Cut, Piece, boxes_of_range, whole
from hvdlm.checkpoint.parts import Kept, Share, check_cover, files_of, shares_of, table_of, tensors_of, write_parts
from hvdlm.checkpoint.reading import read_boxes, table
from hvdlm.checkpoint.saver import Saver, SaveState, Unsaved, merged_scalars
from hvdlm.checkpoint.store import begin, commit
from hvdlm.errors import UserError
from hvdlm.inference.evaluate import evaluate_checkpoint
from hvdlm.partition import slice_of
from hvdlm.train.loop import Loop
from hvdlm.world.serial import SerialWorld
from hvdlm.world.threads import run_on_threads

ROOT = Path(__file__).parent.parent
OLD = Path(__file__).parent / "golden" / "checkpoint-v1"


def test_a_range_is_the_boxes_that_hold_it():
    draw = random.Random(1)
    for _ in range(500):
        shape = tuple(draw.randint(1, 5) for _ in range(draw.randint(0, 4)))
        first = draw.randint(0, math.prod(shape))
        elements = range(first, draw.randint(first, math.prod(shape)))
        tensor = torch.arange(math.prod(shape)).view(shape)
        found = [tensor[box.within(whole(shape))].reshape(-1) for box in boxes_of_range(shape, elements)]
        assert (torch.cat(found).tolist() if found else []) == list(elements)
        assert len(found) <= 2 * max(1, len(shape)) - 1


TENSORS = {
    "model/matrix": torch.arange(35.0).view(7, 5),
    "model/prime": torch.arange(13, dtype=torch.bfloat16),
    "optimizer/matrix/step": torch.tensor(3.0),
    "engine/empty": torch.zeros(0, 4),
    "engine/cube": torch.arange(66.0, dtype=torch.float64).view(11, 3, 2),
    "engine/flags": torch.tensor([True, False]),
}


@pytest.fixture
def written(tmp_path, monkeypatch):
    """A checkpoint of TENSORS by so many ranks that hold them alike, or each a slice of rows."""
    monkeypatch.setattr(part_files, "PART_BYTES", 64)

    def written(size, step=1, cuts=False):
        aside, tables, facts = begin(tmp_path, step), {}, []
        for rank in range(size):
            pieces = []
            for key, tensor in TENSORS.items():
                cut = Cut(tuple(tensor.shape))
                if cuts and tensor.dim() and len(tensor) >= size:
                    cut = Cut(tuple(tensor.shape), 0, (slice_of(rank, size, len(tensor)),))
                elif cuts and rank:
                    continue
                share = (rank, size) if cut.is_whole and not cuts else (0, 1)
                pieces += [Piece(key, part, cut.shape, box, share) for part, box in cut.parts(cut.of(tensor))]
            files = files_of(shares_of(pieces), rank, size)
            tables |= {number: table_of(shares) for number, shares in files.items()}
            facts += write_parts(aside, files)
        return commit(tmp_path, step, aside, tables, facts, STATE)

    return written


@pytest.mark.parametrize("cuts", [False, True], ids=["alike", "cut"])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 7])
def test_what_any_ranks_write_any_ranks_read(written, size, cuts):
    path = written(size, cuts=cuts)
    assert checkpoint.damage(path) is None
    found = tensors_in(path)
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[key], tensor) for key, tensor in TENSORS.items())
    opened = checkpoint.Checkpoint(path)
    for parts in (1, 2, 3, 4, 6):
        for rank in range(parts):
            cut = Cut((11, 3, 2), 0, (slice_of(rank, parts, 11),))
            part = opened.read("engine/", ["cube"], {"cube": cut})["cube"]
            assert torch.equal(part, cut.of(TENSORS["engine/cube"]))
    fused = Cut((7, 5), 0, (range(1, 3), range(5, 7)))
    part = opened.read("model/", ["matrix"], {"matrix": fused})["matrix"]
    assert torch.equal(part, fused.of(TENSORS["model/matrix"]))


def test_a_rank_opens_only_the_parts_that_it_needs(written):
    path = written(5, cuts=True)
    entries = table(path, checkpoint.read_state(path))
    for part in path.glob("part-000[1-4].safetensors"):
        part.unlink()
    box = Box((0, 0, 0), (2, 3, 2))  # of the first rank's
    assert torch.equal(read_boxes(path, entries, {"engine/cube": [box]})["engine/cube"][0], TENSORS["engine/cube"][:2])


@pytest.mark.parametrize(
    ("boxes", "told"),
    [
        ([Box((0, 0), (3, 5))], "15 of 35"),
        ([Box((0, 0), (7, 5)), Box((6, 0), (1, 5))], "40 of 35"),
        ([Box((0, 0), (4, 5)), Box((3, 0), (3, 5))], "two boxes hold"),
        ([Box((0, 0), (7, 4)), Box((0, 5), (7, 1))], "leaves its shape"),
    ],
)
def test_boxes_that_leave_a_gap_or_overlap_are_refused(boxes, told):
    with pytest.raises(ValueError, match=told):
        check_cover("matrix", (7, 5), boxes)
    with pytest.raises(ValueError, match="on|in one part"):
        shares = [shares_of([Piece("a", torch.zeros(n), (n,), whole((n,)))]) for n in (2, 3)]
        tensors_of({number: table_of(each) for number, each in enumerate(shares)})


# --- version 1, as it was written before


@pytest.fixture
def old_run(tmp_path):
    shutil.copytree(OLD, tmp_path / "old", symlinks=True)
    return tmp_path / "old"


def test_checkpoints_of_version_1_go_on_bit_for_bit(old_run, data_dir):
    expected = json.loads((OLD / "expected.json").read_text())["transformer"]
    words = ("model={family: transformer, layers: 2, heads: 2, width: 8, dropout: 0.1}", "ema={decay: 0.9}")
    how = ("optim={name: adamw, lr: 2e-3, warmup_steps: 5, schedule: constant, clip: 0}", "train.eval_every=4")
    found = run_training(data_dir, old_run / "transformer", *words, *how, "train.steps=8", "checkpoint.every=4")
    path = checkpoint.resolve(old_run / "transformer")
    assert checkpoint.read_state(path)["schema"] == 2
    weights = checkpoint.read_weights(path)
    digest = hashlib.sha256(b"".join(weights[name].numpy().tobytes() for name in sorted(weights))).hexdigest()
    assert (found["val_loss"], digest) == (expected["val_loss"], expected["sha256"])


@pytest.mark.parametrize("family", ["transformer", "ngram"])
def test_checkpoints_of_version_1_are_evaluated(old_run, data_dir, family):
    found = evaluate_checkpoint(old_run / family, (f"data.path={data_dir}",), "val", SerialWorld())
    assert found["loss"] == pytest.approx({"transformer": 5.5, "ngram": 3.0}[family], rel=0.2)


# --- nobody is led astray

MEANNESS = (None, [], {}, "x", "", -1, 1.5, True, 1 << 70, "../../../etc/passwd", "/dev/zero", [None], 1 << 40, 0)


def places(value, at=()):
    yield at
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from places(child, (*at, key))


def check_it_ends_in_a_line(path):
    """Looking for damage and loading each end well, or in one line."""
    fault = checkpoint.damage(path)
    try:
        tensors_in(path)
        opened = checkpoint.Checkpoint(path)
        cuts = {"model/matrix": Cut((7, 5), 1, (range(1, 3),)), "engine/cube": Cut((11, 3, 2), 0, (range(2, 9),))}
        opened.read("", cuts.keys() & opened.entries.keys(), cuts)
    except UserError as error:
        assert "\n" not in str(error)
    assert fault is None or "\n" not in fault
    return fault is None


def changed_once(value, draw):
    """One place of a JSON value is changed, another name given, or a part of it repeated."""
    at = draw.choice([at for at in places(value) if at])
    parent = value
    for key in at[:-1]:
        parent = parent[key]
    if isinstance(parent, dict) and draw.random() < 0.2:
        parent[draw.choice(("../x", "part-0009.safetensors", "..", "a/b", "1"))] = parent.pop(at[-1])
    elif isinstance(parent, list) and draw.random() < 0.2:
        parent.append(copy.deepcopy(parent[at[-1]]))
    else:
        parent[at[-1]] = draw.choice(MEANNESS)


def test_a_thousand_changed_records_open_nothing_outside_and_end_in_a_line(written, monkeypatch):
    path = written(3)
    good = json.loads((path / "state.json").read_text())
    looked_at = {key: good.pop(key) for key in ("files", "tensors", "schema", "step")}
    draw = random.Random(7)
    with opened_files(monkeypatch) as opened:
        for _ in range(1000):
            bad = copy.deepcopy(looked_at)
            for _ in range(draw.choice((1, 1, 1, 2, 5))):  # together they may agree on what cannot be
                if bad:
                    changed_once(bad, draw)
            write_record(path, {**good, **bad})
            check_it_ends_in_a_line(path)
    assert {file.parent for file in opened} == {path}
    assert {file.name for file in opened} == {"state.json", *(f"part-000{n}.safetensors" for n in range(3))}


def test_a_thousand_changed_headers_end_in_a_line(written, monkeypatch):
    """Loaded without a look at checksums, as by whoever makes these right."""
    path = written(1)
    content = (path / PART).read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    draw, sound = random.Random(8), 0
    record = json.loads((path / "state.json").read_text())
    with opened_files(monkeypatch) as opened:
        for number in range(1000):
            if number % 2:
                bad = copy.deepcopy(header)
                changed_once(bad, draw)
                text = json.dumps(bad).encode()
                found = len(text).to_bytes(8, "little") + text + content[8 + length :]
            else:
                found = bytearray(content)
                found[draw.randrange(8 + length)] = draw.randrange(256)
            (path / PART).write_bytes(found)
            facts = {"bytes": len(found), "sha256": hashlib.sha256(found).hexdigest()}
            (path / "state.json").write_text(json.dumps({**record, "files": {PART: facts}}))
            sound += check_it_ends_in_a_line(path)
    assert sound < 200
    assert {file.parent for file in opened} == {path}


def test_what_cannot_be_is_refused_before_there_is_room_for_it(written, monkeypatch):
    """A record that lies about its shapes and its files' sizes alike."""
    path = written(1)
    record = json.loads((path / "state.json").read_text())
    shape, half = [1 << 20, 1 << 20], [1 << 19, 1 << 20]
    places_of_cube = [[0, 2, [0, 0], half], [0, 2, [1 << 19, 0], half]]
    record["tensors"]["engine/cube"] = {"shape": shape, "dtype": "F64", "boxes": places_of_cube}
    record["files"][PART]["bytes"] = 1 << 62
    write_record(path, record)
    rooms, plain = [], torch.empty
    monkeypatch.setattr(torch, "empty", lambda size, **how: rooms.append(math.prod(size)) or plain(size, **how))
    with pytest.raises(UserError, match="not as state.json says"):
        checkpoint.Checkpoint(path).read("engine/", ["cube"])
    assert not rooms
    record["tensors"]["engine/cube"] = {"shape": [1 << 62, 4, 0], "dtype": "F64", "boxes": [[0, 2, [0] * 3, [0] * 3]]}
    write_record(path, record)
    with pytest.raises(UserError, match="no tensor has the shape"):
        checkpoint.Checkpoint(path)


def test_a_record_of_very_many_boxes_is_looked_at_in_seconds():
    """All at one place of the first dimension: to compare any two of them would take hours."""
    boxes = [Box((0, place), (1, 1)) for place in range(50_000)]
    start = time.process_time()
    check_cover("row", (1, 50_000), boxes)
    with pytest.raises(ValueError, match="two boxes hold"):
        check_cover("row", (1, 50_000), [*boxes[:-1], boxes[123]])
    assert time.process_time() - start < 5


def test_boxes_fill_a_tensor_if_and_only_if_each_element_is_in_one():
    draw = random.Random(3)
    for _ in range(300):
        shape = tuple(draw.randint(1, 4) for _ in range(draw.randint(1, 3)))
        cells = list(boxes_of_range(shape, range(math.prod(shape))))
        while len(cells) < 5 and (wide := [n for n, box in enumerate(cells) if max(box.shape) > 1]):
            box = cells.pop(draw.choice(wide))
            dim = max(range(len(shape)), key=lambda d: box.shape[d])
            for part in (slice_of(0, 2, box.shape[dim]), slice_of(1, 2, box.shape[dim])):
                put = tuple(o + part.start * (d == dim) for d, o in enumerate(box.offset))
                cells.append(Box(put, tuple(len(part) if d == dim else n for d, n in enumerate(box.shape))))
        check_cover("tensor", shape, cells)
        for box in cells:  # the same number of elements, elsewhere
            moved = [(d, step) for d in range(len(shape)) for step in (-1, 1)]
            for d, step in moved:
                put = tuple(o + step * (d == at) for at, o in enumerate(box.offset))
                with pytest.raises(ValueError, match="two boxes hold|leaves its shape"):
                    check_cover("tensor", shape, [*(each for each in cells if each is not box), Box(put, box.shape)])


def test_a_part_that_is_no_plain_file_is_not_opened(written, tmp_path):
    path = written(1)
    (path / PART).rename(tmp_path / "elsewhere")
    (path / PART).symlink_to(tmp_path / "elsewhere")
    assert "is no regular file" in checkpoint.damage(path)
    with pytest.raises(UserError, match="is no regular file"):
        tensors_in(path)
    (path / PART).unlink()
    os.mkfifo(path / PART)
    with pytest.raises(UserError, match="is no regular file"):
        tensors_in(path)


def test_a_header_without_end_is_refused(written):
    path = written(1)
    for length in (1 << 62, 1 << 40, 10**9):
        (path / PART).write_bytes(length.to_bytes(8, "little") + b"{}")
        with pytest.raises(UserError, match="its header would have"):
            tensors_in(path)


# --- saving while training goes on


def state_of(rank=0):
    tensors = {"weight": torch.arange(1000.0), "moment": torch.ones(77)}
    return tensors, [Piece(f"model/{n}", t, tuple(t.shape), whole(tuple(t.shape))) for n, t in tensors.items()]


def test_what_happens_after_begin_changes_nothing(tmp_path, monkeypatch):
    """The tensors are overwritten before the first byte is written."""
    tensors, pieces = state_of()
    saver = Saver(tmp_path, SerialWorld())
    monkeypatch.setattr("hvdlm.checkpoint.saver.threading.Thread.start", lambda self: None)
    saver.begin(3, pieces, {}, STATE)
    for tensor in tensors.values():
        tensor.fill_(-1)
    monkeypatch.undo()
    saver._save.thread.start()
    path = saver.finish(lambda: None).path
    assert torch.equal(tensors_in(path)["model/weight"], torch.arange(1000.0))
    assert torch.equal(tensors_in(path)["model/moment"], torch.ones(77))


def test_what_happens_to_the_state_after_begin_is_in_no_record(tmp_path):
    """A validation while the parts are written adds its loss to the list that the state names."""
    losses, best = [2.0], {"step": 1}
    saver = Saver(tmp_path, SerialWorld())
    saver.begin(1, state_of()[1], {}, {**STATE, "engine": {"val_losses": losses}, "best": best})
    losses.append(1.0)
    best["step"] = 2
    found = checkpoint.read_state(saver.finish(lambda: None).path)
    assert (found["engine"]["val_losses"], found["best"]) == ([2.0], {"step": 1})


def test_ranks_that_hold_another_number_for_the_same_save_nothing(tmp_path):
    assert merged_scalars([{"a/step": 1.0}, {"b/step": 2.0}, {"a/step": 1.0}]) == {"a/step": 1.0, "b/step": 2.0}
    with pytest.raises(ValueError, match="a/step is 1.0 on a rank before, 2.0 on rank 1"):
        merged_scalars([{"a/step": 1.0}, {"a/step": 2.0}])


def test_what_is_not_finite_is_found_by_the_rank_that_would_write_it(tmp_path, monkeypatch):
    monkeypatch.setattr(part_files, "PART_BYTES", 64)

    def on_rank(world):
        tensors, _ = state_of()
        tensors["weight"][-1] = math.nan
        share = world.rank, world.size
        pieces = [Piece(f"model/{n}", t, tuple(t.shape), whole(tuple(t.shape)), share) for n, t in tensors.items()]
        saver = Saver(tmp_path, world)
        saver.begin(5, pieces, {}, STATE)
        of_tensor = saver.finish(pytest.fail)
        saver.begin(6, [], {"weight/scale": math.inf} if world.rank == 1 else {}, STATE)
        return of_tensor, saver.finish(pytest.fail)

    expected = Unsaved(5, "model/weight"), Unsaved(6, "weight/scale")
    assert run_on_threads(3, on_rank) == [expected] * 3
    assert not list((tmp_path / "checkpoints").iterdir())


def test_buffers_are_used_again(tmp_path):
    saver = Saver(tmp_path, SerialWorld())
    places = set()
    for step in (1, 2, 3):
        _, pieces = state_of()
        saver.begin(step, pieces, {}, STATE)
        places.add(tuple(share.tensor.data_ptr() for share in saver._kept.shares))
        saver.finish(lambda: None)
    assert len(places) == 1


def test_there_is_one_copy_of_the_state_and_no_more():
    kept = Kept()
    kept.take([Share("model/a", (4,), whole((4,)), torch.ones(4))])
    before = weakref.ref(kept.shares[0].tensor)
    made = []

    def empty(*arguments, **options):
        made.append(before() is None)
        return torch.zeros(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "empty", empty)
        kept.take([Share("model/a", (5,), whole((5,)), torch.ones(5))])
    assert made == [True]


def test_what_could_not_be_hashed_is_not_written(tmp_path, monkeypatch):
    def broken(shares):
        raise MemoryError

    monkeypatch.setattr(part_files, "_digest", broken)
    with pytest.raises(MemoryError):
        write_parts(tmp_path, {0: [Share("model/a", (4,), whole((4,)), torch.ones(4))]})
    assert not list(tmp_path.iterdir())


def test_what_was_loaded_stays_when_the_file_goes(tmp_path):
    """Moments are copies: no part of a file is mapped any more once a run goes on."""
    model = torch.nn.Linear(300, 300)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 300)).sum().backward()
    optimizer.step()
    path = checkpoint.save(tmp_path, 1, model, optimizer, STATE)
    restored = torch.optim.AdamW(model.parameters())
    checkpoint.load_model(path, model)
    checkpoint.load_optimizer(path, model, restored)
    gc.collect()
    assert str(path) not in Path("/proc/self/maps").read_text()


def test_ranks_save_together_and_nobody_commits_before_all_are_done(tmp_path, monkeypatch):
    monkeypatch.setattr(part_files, "PART_BYTES", 64)

    def on_rank(world):
        tensors, _ = state_of()
        share = world.rank, world.size
        pieces = [Piece(f"model/{n}", t, tuple(t.shape), whole(tuple(t.shape)), share) for n, t in tensors.items()]
        saver = Saver(tmp_path, world)
        saver.begin(5, pieces, {"weight/scale": 2.0}, STATE)
        waiting = [SaveState.DONE] * (world.size - 1) + [SaveState.WRITING]
        assert saver.settle(waiting, lambda: None) is None
        assert not checkpoint.complete_steps(tmp_path)
        world.barrier()
        return saver.finish(lambda: None).path

    (path, *_) = run_on_threads(3, on_rank)
    assert checkpoint.damage(path) is None
    assert len(list(path.glob("part-*"))) == 3
    assert torch.equal(tensors_in(path)["model/weight"], torch.arange(1000.0))


def test_a_rank_that_cannot_write_ends_the_save_on_all(tmp_path, monkeypatch):
    plain = write_parts

    def refuse(folder, files):
        if 1 in files:
            raise OSError(28, "No space left on device")
        return plain(folder, files)

    monkeypatch.setattr(part_files, "PART_BYTES", 64)
    monkeypatch.setattr("hvdlm.checkpoint.saver.write_parts", refuse)

    def on_rank(world):
        tensors, _ = state_of()
        share = world.rank, world.size
        saver = Saver(tmp_path, world)
        saver.begin(
            5,
            [Piece(f"model/{n}", t, tuple(t.shape), whole(tuple(t.shape)), share) for n, t in tensors.items()],
            {},
            STATE,
        )
        with pytest.raises(UserError, match="step_00000005: No space left on device; make space and run") as caught:
            saver.finish(lambda: None)
        return caught.value.on_all_ranks

    assert run_on_threads(3, on_rank) == [True] * 3
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == []


def test_a_slow_disk_is_no_rank_that_hangs(tmp_path, monkeypatch):
    """While one rank writes all give signs of life, so that no watchdog ends the job."""
    plain, release = write_parts, threading.Event()

    def slow(folder, files):
        if 1 in files:
            assert release.wait(30)
        return plain(folder, files)

    monkeypatch.setattr(part_files, "PART_BYTES", 64)
    monkeypatch.setattr("hvdlm.checkpoint.saver.write_parts", slow)
    monkeypatch.setattr("hvdlm.world.interface.SIGN_S", 0.01)

    def on_rank(world):
        tensors, _ = state_of()
        share = world.rank, world.size
        saver = Saver(tmp_path, world)
        pieces = [Piece(f"model/{n}", t, tuple(t.shape), whole(tuple(t.shape)), share) for n, t in tensors.items()]
        saver.begin(5, pieces, {}, STATE)
        gather, seen = world.gather, []

        def counted(value):
            seen.append(world.beats)
            if world.rank == 0 and len(seen) > 9:
                release.set()
            return gather(value)

        world.gather = counted
        assert saver.finish(lambda: None).step == 5
        return len(set(seen))

    assert min(run_on_threads(2, on_rank)) > 9


@pytest.mark.parametrize("size", [1, 3])
def test_a_part_has_about_so_many_bytes_and_no_other_rank_its_number(written, monkeypatch, size):
    """What they hold is what one part held."""
    monkeypatch.setattr(part_files, "FILE_BYTES", 100)
    path = written(size)
    assert checkpoint.damage(path) is None
    assert len(list(path.glob("part-*"))) >= 2 * size
    found = tensors_in(path)
    assert all(torch.equal(found[key], tensor) for key, tensor in TENSORS.items())
    shares = shares_of([Piece(f"model/{n}", torch.ones(20), (20,), whole((20,))) for n in range(10)])
    files = files_of(shares, 1, 3)
    assert len(files) == 8 and all(len(shares) <= 2 for shares in files.values()), "of 80 bytes each"
    assert all(number % 3 == 1 for number in files)
    assert [share for each in files.values() for share in each] == shares


def test_what_writes_talks_to_no_rank():
    """A collective in the writer's thread could meet another one's, or never end."""
    text = (ROOT / "hvdlm" / "checkpoint" / "parts.py").read_text()
    assert "World" not in text and "world" not in text and "fork" not in text
    writer = (ROOT / "hvdlm" / "checkpoint" / "saver.py").read_text().split("def _write(")[1]
    assert "world" not in writer


def test_an_asynchronous_run_is_the_same_run(data_dir, tmp_path):
    for name, how in (("one", "true"), ("other", "false")):
        settings = f"checkpoint={{every: 2, keep: 20, asynchronous: {how}}}"
        run_training(data_dir, tmp_path / name, settings)
    one, other = (
        {path.name: checkpoint.read_state(path)["files"] for path in (tmp_path / name / "checkpoints").glob("step_*")}
        for name in ("one", "other")
    )
    assert one == other and len(one) == 10


def test_a_save_that_is_due_too_early_is_left_out_where_the_config_says_so(data_dir, tmp_path, monkeypatch):
    """The first is not written before that is told, so that the second finds it unfinished."""
    told = threading.Event()

    class Listener(logging.Handler):
        def emit(self, record):
            if "not saved, the save before it is not over" in record.getMessage():
                told.set()

    def write(folder, files):
        assert told.wait(60)
        return write_parts(folder, files)

    monkeypatch.setattr("hvdlm.checkpoint.saver.write_parts", write)
    listener = Listener()
    logging.getLogger("hvdlm").addHandler(listener)
    try:
        run_training(data_dir, tmp_path, "checkpoint={every: 4, keep: 20, unfinished: skip}", "checkpoint.best=null")
    finally:
        logging.getLogger("hvdlm").removeHandler(listener)
    found = checkpoint.complete_steps(tmp_path)
    assert told.is_set() and {4, 20} <= set(found) and 8 not in found
    assert all(checkpoint.damage(path) is None for path in (tmp_path / "checkpoints").glob("step_*"))


def test_a_validation_during_a_save_is_in_the_next_record_alone(data_dir, tmp_path, monkeypatch):
    """Step 5's parts are not written before step 10 is validated."""
    validated = threading.Event()
    plain = Loop._validate

    def validate(self):
        plain(self)
        validated.set()

    def write(folder, files):
        assert validated.wait(60)
        return write_parts(folder, files)

    monkeypatch.setattr(Loop, "_validate", validate)
    monkeypatch.setattr("hvdlm.checkpoint.saver.write_parts", write)
    run_training(data_dir, tmp_path, "checkpoint={every: 5, keep: 20}")
    losses = [
        len(checkpoint.read_state(checkpoint.path_of(tmp_path, step))["engine"]["val_losses"])
        for step in checkpoint.complete_steps(tmp_path)
    ]
    assert losses == [0, 1, 1, 2]


def test_each_so_many_steps_stay_for_ever(data_dir, tmp_path):
    run_training(data_dir, tmp_path, "checkpoint={every: 2, keep: 1, keep_every: 6}")
    assert checkpoint.complete_steps(tmp_path) == [6, 12, 18, 20]
