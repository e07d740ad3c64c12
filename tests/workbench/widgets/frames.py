"""Waiting for a page to have drawn, however long a frame takes on a busy machine."""

FRAME = "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done))))"
