"""The cases need one of Keras's back ends a process: `test_backends.py` runs them for each."""

import os

collect_ignore = [] if "DROPSEED_KERAS_CASES" in os.environ else ["cases", "substitutes.py"]
