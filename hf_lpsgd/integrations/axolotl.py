"""The plugin for axolotl."""

from axolotl.integrations.base import BasePlugin

import hf_lpsgd  # noqa: F401  registers the optimizers


class LpsgdPlugin(BasePlugin):  # type: ignore[misc]
    """Makes `optimizer: lpsgdm` known to axolotl.

    A config names it: `plugins: [hf_lpsgd.integrations.axolotl.LpsgdPlugin]`.
    """
