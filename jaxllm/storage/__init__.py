"""Where a run's files live: on a local disk or an object store, by the same five operations.

base      the operations
local     a directory
objects   a bucket, and `open_storage`, which tells a path from a URL
"""

from jaxllm.storage.base import Content, Place, Storage, check_name
from jaxllm.storage.local import LocalStorage
from jaxllm.storage.objects import ObjectStorage, is_url, open_storage

__all__ = ["Content", "LocalStorage", "ObjectStorage", "Place", "Storage", "check_name", "is_url", "open_storage"]
