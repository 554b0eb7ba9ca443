"""The laboratory: real data, models and training runs in which dropout can be watched.

Importing it loads nothing; take what you need from its modules (``data``, ``models``, ``train``).
"""
