"""Every code that a user can meet, a file for each hundred. Codes are an interface; docs/errors.md is built of them."""

from __future__ import annotations

from launcher.codes import cluster, ds_config, job, ours, plan, run
from launcher.codes.info import CodeInfo

CATALOGUE: dict[str, CodeInfo] = {}
for _part in (job, plan, ds_config, cluster, run, ours):
    assert not CATALOGUE.keys() & _part.CODES.keys()
    CATALOGUE |= _part.CODES
