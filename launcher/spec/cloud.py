"""CloudSpec: what task files of SkyPilot and dstack say of cloud nodes beside the job itself. ASK."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field

from launcher.spec.base import Block, ImageName, Name, PlainPath, Text
from launcher.spec.kubernetes import object_name, too_long
from launcher.spec.places import Finding

MOST_IN_A_RUN_NAME = 41  # of dstack


class CloudSpec(Block):
    """Nodes that SkyPilot or dstack rents. Where, at which price and on spot or not is said to their commands."""

    image: ImageName = Field(description="with Python and zerolaunch of this version; a digest pins it: name@sha256:…")
    accelerator: Text | None = Field(None, description="the GPU as they call it; None: after cluster.gpu")
    volume: Name | None = Field(
        None, description="their volume that every node mounts; None: the folder of `runs` is shared by the nodes already"
    )
    runs: PlainPath = Field("/runs", description="shared folder that holds the runs; data of the job may lie on it too")
    port: int = Field(29500, ge=1024, le=65_535, description="on which ranks meet on the first node")


def name_findings(job_name: str) -> Iterator[Finding]:
    yield from too_long(job_name, object_name(job_name), most=MOST_IN_A_RUN_NAME, of="runs of dstack")
