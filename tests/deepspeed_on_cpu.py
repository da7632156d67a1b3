"""DeepSpeed, kept from compiling for a minute another way between the processes of one machine: gloo needs none."""

import deepspeed
import deepspeed.module_inject.auto_ep_layer  # what an engine imports when it is made
import deepspeed.runtime.zero.muon.muon_optimizer

deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
