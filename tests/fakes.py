"""Stand-ins for what a test machine does not have."""

from obstore.store import MemoryStore

from jaxllm.storage import ObjectStorage, objects


def object_storage() -> ObjectStorage:
    """An empty object store in memory."""
    return ObjectStorage(MemoryStore(), "memory://bucket")


def make_bucket(monkeypatch) -> str:
    """URL of an empty object store in memory, known to all code of this process."""
    store = MemoryStore()
    monkeypatch.setattr(objects, "connect", lambda scheme, bucket: {("gs", "bucket"): store}[scheme, bucket])
    return "gs://bucket"
