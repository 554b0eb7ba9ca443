"""Settings of the whole test run that must stand before any framework is imported."""

import os

os.environ.setdefault("KERAS_BACKEND", "torch")  # Keras's own choice is TensorFlow
