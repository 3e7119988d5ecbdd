"""The specs and statuses of the custom resources, as pydantic models.

``schema`` is what they are made of; ``fields`` the types that several kinds share; ``provider``,
``route`` and ``caller`` the kinds themselves. ``resources`` is the way in.
"""
