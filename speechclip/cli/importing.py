"""import-checkpoint: turn the head of an official checkpoint into a run."""

from typing import Any

import click

from speechclip.cli.terminal import note_untrained, say
from speechclip.config import whole_path


@click.command(name="import-checkpoint")
@click.argument("file")
@click.option("--out", required=True, metavar="DIR", help="The folder of the new run: a path or s3://.")
@click.option(
    "--speech",
    metavar="ENCODER",
    help="The HuBERT that it was trained on. Default: facebook/hubert-base-ls960 or -large-ll60k, by size.",
)
@click.option(
    "--image",
    metavar="ENCODER",
    help="The CLIP that it was trained on. Default: clip:ViT-B-32/openai or clip:ViT-L-14/openai, by size.",
)
@click.option(
    "--recipe", metavar="NAME", help="The recipe that the run names. Default: the published recipe of that model."
)
@click.option(
    "--codec",
    type=click.Choice(["fp16", "fp32"]),
    default="fp16",
    show_default=True,
    help="The codec of the stored features that the head reads.",
)
def import_checkpoint(
    file: str, out: str, speech: str | None, image: str | None, recipe: str | None, codec: Any
) -> None:
    """Turn the head of an official checkpoint into a run. FILE is a Lightning .ckpt; nothing in it is executed.

    Example: speechclip import-checkpoint epoch=56-step=6725.ckpt --out RUN
    """
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
        count = head.num_keywords if head.segmentation == "fixed" else "as many as the head finds"
        say(f"keywords: {count}, chosen from {head.vocabulary_size:,} of CLIP's tokens")
    left = "".join(f"{kind} ({count:,} tensors), " for kind, count in done.layout.left_out.items())
    say(f"left out: {left}the optimizer")
    say(f"{out}: {identity.speech.encoder_name} and {identity.image.encoder_name}, recipe {identity.recipe.name}")
    for note in done.notes:
        say(f"note: {note}")
    note_untrained(identity.untrained, "this head was trained on other encoders")
