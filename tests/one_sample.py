"""One sample of a dataset, as tests look at it."""

from types import SimpleNamespace


def sample(dataset, index):
    """Return the sample `index`: the fields of a batch of one, each without its first axis."""
    batch = dataset.batch([index])
    images = {camera: pictures[0] for camera, pictures in batch.images.items()}
    fields = {name: values[0] for name, values in vars(batch).items() if name != "images" and values is not None}
    return SimpleNamespace(images=images, instruction=fields.pop("instructions"), **fields)
