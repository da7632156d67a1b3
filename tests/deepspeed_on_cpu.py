"""DeepSpeed with what an engine imports when it is made.

It is kept from compiling, for a minute, another way between the processes of one machine: gloo needs none.
"""

import contextlib

import deepspeed

with contextlib.suppress(ImportError):  # not in every version
    import deepspeed.module_inject.auto_ep_layer
    import deepspeed.runtime.zero.muon.muon_optimizer

deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
