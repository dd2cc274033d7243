"""symprune: symmetric pruning of large language models after training.

The public names stand in `__init__.pyi`; each is imported when it is first asked for, so that `symprune
--help` needs no torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

__version__ = "0.1.0"
