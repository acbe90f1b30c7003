"""Profiles: latency tables and qualities per task of models on a device, with the provenance of each part.

A profile is a JSON file. `load_profile` reads one by path, or a built-in one by name.
"""

from besteffort.profile.files import builtin_profiles, load_profile, save_profile
from besteffort.profile.types import ModelProfile, Profile, Provenance, Source, TaskQuality

__all__ = [
    "ModelProfile",
    "Profile",
    "Provenance",
    "Source",
    "TaskQuality",
    "builtin_profiles",
    "load_profile",
    "save_profile",
]
