"""The `parallel` section: how the ranks share a model, beside the data."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from hvdlm.config import Section, choice_of
from hvdlm.parallel.mesh import Mesh, mesh_of
from hvdlm.parallel.schedule import SCHEDULES

Ranks = Annotated[int, Field(ge=1, le=1_000_000)]


USUAL = "1f1b"  # a schedule


def in_words(mesh: Mesh, *, sequence: bool, zero: int, schedule: str, chunks: int) -> str:
    """A mesh, and what of how it is used is not the usual; empty where each rank has all of a model for itself."""
    if not (mesh.cuts_model or zero):
        return ""
    told = ["sequence"] * sequence + [f"zero {zero}"] * (zero > 0)
    told += [f"schedule {schedule}"] * (schedule != USUAL) + [f"{chunks} chunks"] * (chunks > 1)
    return ", ".join([str(mesh), *told])


class ParallelConfig(Section):
    """All ranks are `pipeline` x `data` x `tensor`. A run may be resumed with another mesh."""

    data: Literal["auto"] | Ranks = Field("auto", description="replicas that share each batch; auto: what is left")
    pipeline: Ranks = Field(1, description="stages that the layers are cut into, one behind the other")
    tensor: Ranks = Field(1, description="ranks that share each layer's heads, MLP and vocabulary")
    sequence: bool = Field(False, description="tensor ranks share what lies between their layers too, by the token")
    zero: int = Field(0, ge=0, le=1, description="1: data replicas share the optimizer's state (ZeRO-1)")
    schedule: Annotated[str, choice_of(SCHEDULES)] = Field(
        USUAL, description="in which order a stage works on micro-batches"
    )
    chunks: int = Field(1, ge=1, le=64, description="of layers on each stage, for schedule: interleaved")
    tensor_blocks: int = Field(
        0, ge=0, le=64, description="8: products in 8 fixed blocks, with the same bits at 1, 2, 4 and 8 ranks; slow"
    )

    @model_validator(mode="after")
    def _check(self) -> ParallelConfig:
        kind = SCHEDULES[self.schedule]
        if self.chunks > 1 and not kind.takes_chunks:
            ours = ", ".join(name for name, one in SCHEDULES.items() if one.takes_chunks)
            raise ValueError(
                f"chunks {self.chunks}: schedule: {self.schedule} has one on each stage; set schedule: {ours}"
            )
        if kind.takes_chunks and self.chunks == 1 and self.pipeline > 1:
            raise ValueError(f"schedule: {self.schedule} needs chunks of 2 or more; set parallel.chunks")
        if self.pipeline == 1 and (self.chunks > 1 or self.schedule != "1f1b"):
            raise ValueError(
                f"schedule: {self.schedule} and chunks are of several stages, and pipeline is 1; set that, or leave"
                " them out"
            )
        if self.sequence and self.tensor == 1:
            raise ValueError("sequence: true is of tensor ranks, and tensor is 1; leave it out")
        if self.tensor_blocks and self.zero:
            raise ValueError("tensor_blocks is for verifying, with zero: 0; leave one of them out")
        if self.tensor_blocks and self.tensor_blocks % self.tensor:
            raise ValueError(f"tensor_blocks {self.tensor_blocks} cannot be shared by tensor {self.tensor}")
        return self

    @property
    def shared_by(self) -> int:
        """Ranks of one replica."""
        return self.pipeline * self.tensor

    def mesh(self, size: int) -> Mesh:
        """Of so many ranks; UserError where they cannot be laid out so."""
        data = None if self.data == "auto" else self.data
        return mesh_of(size, data=data, pipeline=self.pipeline, tensor=self.tensor)

    def in_words(self, size: int) -> str:
        """How so many ranks share a model or its optimizer's state; empty where each has a whole one of its own.

        >>> ParallelConfig(pipeline=2, tensor=2, zero=1).in_words(4), ParallelConfig().in_words(4)
        ('pipeline 2 x data 1 x tensor 2, zero 1', '')
        """
        return in_words(
            self.mesh(size), sequence=self.sequence, zero=self.zero, schedule=self.schedule, chunks=self.chunks
        )

    def data_groups(self, size: int) -> list[list[int]]:
        """The ranks that add up gradients, as `connected` wants them."""
        return self.mesh(size).groups("data")
