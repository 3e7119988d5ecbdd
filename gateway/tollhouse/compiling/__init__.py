"""What ``compile`` is made of: a module for each kind that reaches the snapshot, and ``names``.

Each function compiles one object, appends what there is to say about it to a list of findings, and
knows nothing of the objects beside it but those that it names.
"""
