"""import-checkpoint: an official head as a run of ours."""

from typing import Any

import click

from speechclip.cli.terminal import note_untrained, say
from speechclip.config import whole_path


@click.command(name="import-checkpoint")
@click.argument("file")
@click.option("--out", required=True, metavar="DIR", help="The new run folder (path or s3://).")
@click.option(
    "--speech", metavar="SPEC", help="Its HuBERT; default hubert:facebook/hubert-base-ls960 or -large-ll60k, by size."
)
@click.option(
    "--image", metavar="SPEC", help="Its CLIP; default clip:ViT-B-32/openai or clip:ViT-L-14/openai, by size."
)
@click.option("--recipe", metavar="NAME", help="The recipe to name; default the published one of that model.")
@click.option(
    "--codec",
    type=click.Choice(["fp16", "fp32"]),
    default="fp16",
    show_default=True,
    help="How the store keeps the features that the head reads.",
)
def import_checkpoint(
    file: str, out: str, speech: str | None, image: str | None, recipe: str | None, codec: Any
) -> None:
    """Make a run of the head in an official checkpoint (a Lightning .ckpt FILE); nothing in the file is run."""
    from speechclip.heads import KeywordConfig
    from speechclip.official.importer import import_checkpoint as import_head

    done = import_head(file, whole_path(out), speech=speech, image=image, recipe=recipe, codec=codec)
    head, identity = done.layout.head, done.info.identity
    say(
        f"{file}: a {done.layout.kind} head, {done.num_parameters:,} parameters, {head.num_layers} states of width "
        f"{head.width} (normalised: {head.normalize}) to {head.embedding_width}, after epoch {done.epoch}, "
        f"step {done.info.num_steps:,}"
    )
    if isinstance(head, KeywordConfig):
        count = head.num_keywords if head.segmentation == "fixed" else "as many as it hears"
        say(f"keywords: {count}, of {head.vocabulary_size:,} of CLIP's tokens")
    left = "".join(f"{kind} ({count:,} tensors), " for kind, count in done.layout.left_out.items())
    say(f"left out: {left}the optimizer")
    say(f"{out}: {identity.speech.encoder_name} and {identity.image.encoder_name}, recipe {identity.recipe.name}")
    for note in done.notes:
        say(f"note: {note}")
    note_untrained(identity.untrained, "this head was trained on other encoders")
