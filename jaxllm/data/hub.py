"""Files of the Hugging Face hub by their usual addresses.

    hf://datasets/OWNER/NAME[@REVISION]/PATH     of a dataset
    hf://OWNER/NAME[@REVISION]/PATH              of a model, such as its tokenizer

PATH is a file, a directory or a glob. What is fetched stays in the hub's own cache, so a second run needs no network;
`HF_HOME`, `HF_TOKEN`, `HF_ENDPOINT` and `HF_HUB_OFFLINE` mean what they mean elsewhere.
"""

import re
from collections.abc import Sequence

PREFIX = "hf://"
_ADDRESS = re.compile(r"hf://(?P<kind>datasets/)?(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^/]+))?(?:/(?P<path>.+))?")


def fetch(address: str, field: str, names: Sequence[str] = ()) -> str:
    """Bring files here.

    Args:
        address: a path, returned as it is, or an address of the hub.
        field: of the config, for errors.
        names: of a directory, only these files.

    Returns:
        The local path of the file or the directory, or the local glob.

    Raises:
        ValueError: it is no address, or cannot be fetched.
    """
    if not address.startswith(PREFIX):
        return address
    found = _ADDRESS.fullmatch(address)
    if not found:
        raise ValueError(f"{field} = {address!r}: write hf://datasets/OWNER/NAME/PATH or hf://OWNER/NAME/PATH")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    path = (found["path"] or "").strip("/")
    inside = f"{path}/" if path else ""
    patterns = [f"{inside}{name}" for name in names] if names else [path or "*", f"{inside}*"]
    try:
        directory = snapshot_download(
            found["repo"],
            repo_type="dataset" if found["kind"] else "model",
            revision=found["revision"],
            allow_patterns=[*patterns, path] if path else patterns,
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"{field} = {address!r} cannot be fetched ({reason[:200]}): check the name and the network, "
            "or name local files"
        ) from None
    return f"{directory}/{path}" if path else directory
