"""What each model costs (latency tables) and gives (quality per task) on a device, and how anybody knows.

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
