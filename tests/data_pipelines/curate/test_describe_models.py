"""Pretrained models of curation, with tiny random weights in their true formats."""

import dataclasses
import functools
import json
import pickle
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from data_pipelines.curate.checkpoints import CheckpointError
from data_pipelines.curate.clips import ClipError, Shot
from data_pipelines.curate.describe import Description, Entity
from data_pipelines.curate.describe_models import (
    Florence2Describer,
    GroundingDinoDescriber,
    Kosmos2Describer,
)
from data_pipelines.curate.track_sam2 import Sam2Tracker

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch")
import torch.nn.functional as F  # noqa: E402
import transformers  # noqa: E402
from PIL import Image  # noqa: E402
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil  # noqa: E402
from transformers.models.grounding_dino.image_processing_pil_grounding_dino import (  # noqa: E402
    GroundingDinoImageProcessorPil,
)
from transformers.models.sam2.configuration_sam2 import (  # noqa: E402
    Sam2HieraDetConfig,
    Sam2VisionConfig,
)
from transformers.models.sam2_video.modeling_sam2_video import (  # noqa: E402
    Sam2VideoInferenceSession,
)

WORDS = "an image of a dog red ball and in the grass".split()
SIDE = 32


def make_shot(frames=5, size=(30, 48), seed=0, **fields):
    pictures = np.random.default_rng(seed).integers(0, 256, (frames, *size, 3), np.uint8)
    return Shot(pictures, 0.1 * np.arange(frames), **fields)


@pytest.fixture(scope="module")
def shot():
    return make_shot()


def save_random(model_class, config, folder, *, gain=1.5):
    """Weights large enough that pictures and prompts matter, and small enough against chaos."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = model_class(config).eval()
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                weight.data.normal_(0, gain * weight[0].numel() ** -0.5)
            elif name.endswith("bias"):
                weight.data.normal_(0, 0.1)
    model.save_pretrained(folder)
    return model


def clip_processor(side, **settings):
    square = {"height": side, "width": side}
    return CLIPImageProcessorPil(size=square, crop_size=square, **settings)


@pytest.fixture(scope="module")
def kosmos2(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kosmos2")
    pieces = [
        "<s>",
        "<pad>",
        "</s>",
        "<unk>",
        "▁",
        *(f"▁{word}" for word in WORDS),
        "▁An",
        *"abcdIA.",
    ]
    tokenizer = transformers.XLMRobertaTokenizer(
        vocab=[(p, -float(n)) for n, p in enumerate(pieces)]
    )
    # As CLIP's processor is by default: it cuts the middle out of a wide picture.
    images = CLIPImageProcessorPil(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}
    )
    processor = transformers.Kosmos2Processor(images, tokenizer)
    processor.save_pretrained(folder)
    text = {"vocab_size": len(tokenizer), "embed_dim": 16, "layers": 1, "ffn_dim": 16}
    text |= {"attention_heads": 2, "max_position_embeddings": 256}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    vision |= {"num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    config = transformers.Kosmos2Config(text_config=text, vision_config=vision, latent_query_num=4)
    model = save_random(transformers.Kosmos2ForConditionalGeneration, config, folder, gain=4)
    # Words shall be likelier than the thousand tokens of places.
    model.get_input_embeddings().weight.data[len(pieces) :] *= 0.1
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def florence2(tmp_path_factory):
    folder = tmp_path_factory.mktemp("florence2")
    letters = tokenizer_bytes()
    pieces = ["<s>", "<pad>", "</s>", "<unk>", *letters, "<mask>"]
    tokenizer = transformers.BartTokenizer(
        vocab={piece: n for n, piece in enumerate(pieces)},
        merges=[],
        extra_special_tokens={"image_token": "<image>"},
    )
    tokenizer.add_tokens([f"<loc_{n}>" for n in range(1000)], special_tokens=True)
    processor = transformers.Florence2Processor(
        clip_processor(SIDE * 2, do_center_crop=False, image_seq_length=5),
        tokenizer,
        post_processor_config={
            "pure_text": {},
            "phrase_grounding": {"banned_grounding_tokens": ["it"]},
        },
    )
    processor.save_pretrained(folder)
    text = {"vocab_size": len(tokenizer), "d_model": 16, "max_position_embeddings": 256}
    for part in ("encoder", "decoder"):
        text |= {f"{part}_layers": 1, f"{part}_ffn_dim": 16, f"{part}_attention_heads": 2}
    vision = {"depths": [1] * 4, "embed_dim": [8, 8, 8, 16], "num_heads": [1] * 4}
    vision |= {"num_groups": [1] * 4, "window_size": 2, "projection_dim": 16}
    config = transformers.Florence2Config(
        text_config={"model_type": "bart", **text},
        vision_config=vision,
        image_token_id=tokenizer.image_token_id,
    )
    save_random(transformers.Florence2ForConditionalGeneration, config, folder)
    return folder


def tokenizer_bytes():
    """The letters that byte-level tokenizers write bytes with."""
    from tokenizers.pre_tokenizers import ByteLevel

    return sorted(ByteLevel.alphabet())


@pytest.fixture(scope="module")
def grounding_dino(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grounding_dino")
    # The model knows [CLS], [SEP], "." and "?" by their ids in BERT's vocabulary.
    vocabulary = {f"[unused{n}]": n for n in range(1100)}
    named = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103, ".": 1012}
    named |= {"?": 1029} | {word: 1030 + n for n, word in enumerate(WORDS)}
    for word, n in named.items():
        del vocabulary[f"[unused{n}]"]
        vocabulary[word] = n
    tokenizer = transformers.BertTokenizer(vocab=vocabulary)
    images = GroundingDinoImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 96})
    transformers.GroundingDinoProcessor(images, tokenizer).save_pretrained(folder)
    swin = {"embed_dim": 8, "depths": [1] * 4, "num_heads": [1] * 4, "window_size": 4}
    bert = {"vocab_size": 1100, "hidden_size": 16, "num_hidden_layers": 1}
    bert |= {"num_attention_heads": 2, "intermediate_size": 16, "max_position_embeddings": 64}
    config = transformers.GroundingDinoConfig(
        backbone_config={"model_type": "swin", "out_indices": [2, 3, 4], **swin},
        text_config={"model_type": "bert", **bert},
        num_queries=8,
        encoder_layers=1,
        decoder_layers=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        d_model=32,
        max_text_len=32,
    )
    save_random(transformers.GroundingDinoForObjectDetection, config, folder)
    return folder


@pytest.fixture(scope="module")
def sam2(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sam2")
    sizes = [[SIDE // 4 * 2 // n] * 2 for n in (1, 2, 4)]
    backbone = Sam2HieraDetConfig(
        hidden_size=8,
        image_size=[2 * SIDE] * 2,
        blocks_per_stage=[1, 1, 2, 1],
        embed_dim_per_stage=[8, 12, 16, 20],
        num_attention_heads_per_stage=[1] * 4,
        window_size_per_stage=[4, 4, 2, 2],
        window_positional_embedding_background_size=[2, 2],
        global_attention_blocks=[3],
        mlp_ratio=1.0,
    )
    vision = Sam2VisionConfig(
        backbone_config=backbone,
        backbone_channel_list=[20, 16, 12, 8],
        backbone_feature_sizes=sizes,
        fpn_hidden_size=128,
    )
    config = transformers.Sam2VideoConfig(
        vision_config=vision,
        prompt_encoder_config={
            "hidden_size": 128,
            "image_size": 2 * SIDE,
            "mask_input_channels": 4,
        },
        mask_decoder_config={
            "hidden_size": 128,
            "mlp_dim": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "iou_head_hidden_dim": 16,
        },
        image_size=2 * SIDE,
        num_maskmem=3,
        max_object_pointers_in_encoder=4,
        memory_attention_hidden_size=128,
        memory_attention_num_layers=1,
        memory_attention_feed_forward_hidden_size=16,
        memory_attention_rope_feat_sizes=[4, 4],
        memory_encoder_hidden_size=128,
        memory_encoder_output_channels=64,
        mask_downsampler_embed_dim=128,
        memory_fuser_num_layers=1,
        memory_fuser_embed_dim=128,
        memory_fuser_intermediate_dim=16,
    )
    model = save_random(transformers.Sam2VideoModel, config, folder)
    # The things are there, and the boxes matter.
    model.mask_decoder.pred_obj_score_head.proj_out.bias.data += 5
    model.prompt_encoder.point_embed.weight.data *= 20
    model.save_pretrained(folder)
    return folder


def described(describer, shot, *generated, monkeypatch):
    """What is described where the model generates the given texts; and the prompts it is given."""
    model, processor = describer.loaded
    prompts, texts = [], iter(generated)

    def generate(*, input_ids, **inputs):
        prompts.append(processor.batch_decode(input_ids, skip_special_tokens=True)[0])
        text = next(texts)
        return torch.tensor([processor.tokenizer(text, add_special_tokens=False)["input_ids"]])

    monkeypatch.setattr(model, "generate", generate)
    return describer.describe(shot), prompts


def with_sidecar(shot, **sidecar):
    return dataclasses.replace(shot, sidecar=sidecar)


def test_kosmos2_is_called_as_transformers_says(kosmos2, shot):
    describer = Kosmos2Describer(kosmos2, tokens=24, device="cpu")
    got = describer.describe(shot)
    model = transformers.Kosmos2ForConditionalGeneration.from_pretrained(kosmos2)
    processor = transformers.Kosmos2Processor.from_pretrained(kosmos2)
    # The processor cuts wide pictures, unless they are square already.
    picture = Image.fromarray(shot.frames[2]).resize((28, 28), Image.Resampling.BICUBIC)
    inputs = processor(
        text="<grounding>An image of", images=picture, num_image_tokens=4, return_tensors="pt"
    )
    tokens = model.generate(**inputs, max_new_tokens=24, do_sample=False)
    text = processor.batch_decode(tokens, skip_special_tokens=True)[0]
    caption, entities = processor.post_process_generation(text)
    assert caption.startswith("An image of") and len(caption) > len("An image of ")
    assert got.caption == caption[len("An image of") :].strip()
    assert not entities and not got.entities  # chance makes none; the next test has some


def test_kosmos2_reads_boxes(kosmos2, shot, monkeypatch):
    text = (
        "<grounding> An image of<phrase> a dog</phrase><object><patch_index_0044><patch_index_0863>"
        "</object> and<phrase> the ball</phrase><object><patch_index_0000><patch_index_0000>"
        "</delimiter_of_multi_objects/><patch_index_0005><patch_index_0911></object> in<phrase> a"
        " image</phrase><object><patch_index_0863><patch_index_0044></object><object>"
        "<patch_index_0001><patch_index_0900></object> the grass"
    )
    describer = Kosmos2Describer(kosmos2, device="cpu", at=1)
    got, prompts = described(describer, shot, text, monkeypatch=monkeypatch)
    assert prompts[0].endswith("<grounding> An image of")
    assert got.caption == "a dog and the ball in a image the grass"
    # In cells of a 32 by 32 grid; corners are the cells' middles, but all of one cell. The third
    # phrase's box is upside down, and the last box has no phrase.
    assert list(got.entities) == [
        Entity("a dog", (12.5 / 32, 1.5 / 32, 31.5 / 32, 26.5 / 32), 4),
        Entity("the ball", (0, 0, 1 / 32, 1 / 32), 4),
        Entity("the ball", (5.5 / 32, 0.5 / 32, 15.5 / 32, 28.5 / 32), 4),
    ]
    shot = with_sidecar(shot, caption="fetch")
    given, _ = described(describer, shot, text, monkeypatch=monkeypatch)
    assert given == Description("fetch", got.entities)
    describer.caption = "model"
    assert described(describer, shot, text, monkeypatch=monkeypatch)[0] == got


def test_kosmos2_without_a_caption(kosmos2, shot, monkeypatch):
    describer = Kosmos2Describer(kosmos2, device="cpu")
    with pytest.raises(ClipError) as error:
        described(describer, shot, "<grounding> An image of", monkeypatch=monkeypatch)
    assert error.value.reason == "no caption"


def test_florence2_is_called_as_transformers_says(florence2, shot):
    settings = {"tokens": 16, "beams": 2, "device": "cpu"}
    got = Florence2Describer(florence2, at=0, **settings).describe(shot)
    model = transformers.Florence2ForConditionalGeneration.from_pretrained(florence2)
    processor = transformers.Florence2Processor.from_pretrained(florence2)
    picture = Image.fromarray(shot.frames[0])

    def ask(task, words=""):
        inputs = processor(text=task + words, images=picture, return_tensors="pt")
        tokens = model.generate(**inputs, max_new_tokens=16, num_beams=2, do_sample=False)
        text = processor.batch_decode(tokens, skip_special_tokens=False)[0]
        answer = processor.post_process_generation(text, task=task, image_size=picture.size)
        return answer[task]

    assert got.caption == ask("<MORE_DETAILED_CAPTION>")
    plain = got.caption.replace("<", " ").replace(">", " ").strip()
    found = ask("<CAPTION_TO_PHRASE_GROUNDING>", plain)
    assert len(got.entities) <= len(found["labels"])


def test_florence2_reads_boxes(florence2, shot, monkeypatch):
    boxes = (
        "</s><s>A dog<loc_100><loc_200><loc_300><loc_999>it<loc_1><loc_2><loc_3><loc_4>the red ball"
        "<loc_0><loc_0><loc_10><loc_10><loc_500><loc_400><loc_600><loc_401>собака<loc_1><loc_2>"
        "<loc_3><loc_4>grass<loc_9><loc_9><loc_9><loc_9></s>"
    )
    caption = "</s><s>A dog <runs> after the red ball.</s>"
    describer = Florence2Describer(florence2, device="cpu")
    got, prompts = described(describer, shot, caption, boxes, monkeypatch=monkeypatch)
    assert got.caption == "A dog <runs> after the red ball."
    assert "Describe with a paragraph" in prompts[0]
    assert prompts[1].endswith(
        "Locate the phrases in the caption: A dog  runs  after the red ball."
    )

    def shares(*bins):
        return tuple((2 * n + 1) / 2000 for n in bins)

    # "it" is banned by the processor's settings, the Russian name is lost in its ASCII, and the
    # grass has no area.
    assert list(got.entities) == [
        Entity("A dog", shares(100, 200, 300, 999), 2),
        Entity("the red ball", shares(0, 0, 10, 10), 2),
        Entity("the red ball", shares(500, 400, 600, 401), 2),
    ]
    # The processor alone, in whole pixels of a large picture.
    task = "<CAPTION_TO_PHRASE_GROUNDING>"
    size = (4000, 3000)
    pixels = describer.loaded.processor.post_process_generation(boxes, task=task, image_size=size)
    for box, entity in zip(pixels[task]["bboxes"][:3], got.entities, strict=True):
        np.testing.assert_allclose(np.divide(box, size * 2), entity.box, atol=1 / 3000)


def test_florence2_grounds_a_given_caption(florence2, shot, monkeypatch):
    shot = with_sidecar(shot, caption="a ball rolls")
    boxes = "</s><s>a ball<loc_0><loc_0><loc_10><loc_10></s>"
    describer = Florence2Describer(florence2, device="cpu")
    got, prompts = described(describer, shot, boxes, monkeypatch=monkeypatch)
    assert (got.caption, len(got.entities)) == ("a ball rolls", 1)
    assert len(prompts) == 1 and prompts[0].endswith("a ball rolls")


def test_a_caption_that_is_too_long_for_florence2(florence2, shot):
    shot = with_sidecar(shot, caption="a ball rolls " * 20)
    with pytest.raises(ClipError, match="room for 256") as error:
        Florence2Describer(florence2, device="cpu").describe(shot)
    assert error.value.reason == "caption too long"


def test_grounding_dino_is_called_as_transformers_says(grounding_dino, shot):
    shot = with_sidecar(shot, caption="A dog and  a red ball.")
    settings = {"threshold": 0.5, "text_threshold": 0.4}
    got = GroundingDinoDescriber(grounding_dino, **settings, device="cpu").describe(shot)
    model = transformers.GroundingDinoForObjectDetection.from_pretrained(grounding_dino)
    processor = transformers.GroundingDinoProcessor.from_pretrained(grounding_dino)
    inputs = processor(
        images=Image.fromarray(shot.frames[2]), text="a dog and a red ball.", return_tensors="pt"
    )
    with torch.no_grad():
        outputs = model(**inputs)
    found = processor.post_process_grounded_object_detection(
        outputs, inputs["input_ids"], **settings
    )[0]
    order = found["scores"].argsort(descending=True).tolist()
    names = [found["text_labels"][n].replace("[SEP]", "").strip(" .") for n in order]
    kept = [(name, found["boxes"][n]) for name, n in zip(names, order, strict=True) if name]
    assert got.caption == "A dog and  a red ball."
    assert [entity.name for entity in got.entities] == [name for name, _ in kept] and kept
    for entity, (_, box) in zip(got.entities, kept, strict=True):
        np.testing.assert_allclose(entity.box, box.clamp(0, 1), atol=1e-6)


@pytest.fixture
def detects(grounding_dino, monkeypatch):
    """Describes with given scores of the prompt's tokens, and boxes by centre and size."""

    def describe(shot, scores, boxes, **settings):
        describer = GroundingDinoDescriber(grounding_dino, device="cpu", **settings)
        prompts = []

        def forward(*, input_ids, **inputs):
            prompts.append(describer.loaded.processor.tokenizer.decode(input_ids[0]))
            padded = torch.full((1, len(scores), 32), -torch.inf)
            padded[0, :, : input_ids.shape[1]] = torch.tensor(scores).logit()
            return transformers.models.grounding_dino.modeling_grounding_dino.ModelOutput(
                logits=padded, pred_boxes=torch.tensor([boxes])
            )

        monkeypatch.setattr(describer.loaded.model, "forward", forward)
        return describer.describe(shot), prompts[0]

    return describe


def test_grounding_dino_names_what_it_was_asked_for(detects, shot):
    names = ["A dog", "the red. ball?", "\u200b"]
    # [CLS] a dog . the red ball . . [SEP]; the last name has no token.
    scores = [
        [0.9, 0.1, 0.2, 0.1, 0.1, 0.4, 0.3, 0.1, 0.1, 0.9],
        [0.1, 0.1, 0.7, 0.1, 0.6, 0.1, 0.1, 0.1, 0.1, 0.1],
        [0.9, 0.1, 0.2, 0.9, 0.1, 0.2, 0.2, 0.1, 0.1, 0.9],
    ]
    boxes = [[0.5, 0.5, 0.5, 0.25], [0.0, 0.5, 0.5, 1.5], [0.5, 0.5, 1.0, 1.0]]
    got, prompt = detects(shot, scores, boxes, names=names)
    assert prompt == "[CLS] a dog. the red ball.. [SEP]"
    assert list(got.entities) == [
        Entity("A dog", (0.0, 0.0, 0.25, 1.0), 2),
        Entity("the red. ball?", (0.25, 0.375, 0.75, 0.625), 2),
    ]
    assert got.caption == "a video of A dog and the red. ball?"
    best, _ = detects(shot, scores, boxes, names=names, most=1)
    assert [entity.name for entity in best.entities] == ["A dog"]
    with pytest.raises(ClipError) as error:
        detects(shot, scores, boxes, names=names, threshold=0.8)
    assert error.value.reason == "no caption"


def test_grounding_dino_looks_for_the_names_of_the_sidecar_file(detects, shot):
    entities = [{"name": "dog"}, {"name": "ball"}, {"name": "?"}]
    shot = with_sidecar(shot, caption="c", entities=entities)
    got, prompt = detects(shot, [[0.1, 0.1, 0.1, 0.9, 0.1, 0.1]], [[0.5] * 4])
    assert prompt == "[CLS] dog. ball. [SEP]"
    assert got == Description("c", [Entity("ball", (0.25, 0.25, 0.75, 0.75), 2)])


def test_grounding_dino_finds_phrases_of_a_caption(detects, shot):
    shot = with_sidecar(shot, caption="A red ball in the grass")
    # [CLS] a red ball in the grass . [SEP]; the last box answers to [SEP] alone.
    scores = [
        [0.1, 0.3, 0.5, 0.6, 0.1, 0.1, 0.1, 0.1, 0.3],
        [0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.4, 0.3, 0.1],
        [0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.9],
    ]
    got, prompt = detects(shot, scores, [[0.5] * 4] * 3)
    assert prompt == "[CLS] a red ball in the grass. [SEP]"
    assert [entity.name for entity in got.entities] == ["a red ball", "grass"]


def test_grounding_dino_needs_something_to_look_for(grounding_dino, shot):
    with pytest.raises(ClipError, match="neither names nor a caption"):
        GroundingDinoDescriber(grounding_dino, device="cpu").describe(shot)
    with pytest.raises(ClipError, match="reads 32") as error:
        names = ["a red ball"] * 10
        GroundingDinoDescriber(grounding_dino, names=names, device="cpu").describe(shot)
    assert error.value.reason == "caption too long"


@pytest.mark.parametrize(
    "describer, settings, message",
    [
        (Kosmos2Describer, {"at": 1.5}, "at is 1.5"),
        (Florence2Describer, {"caption": "mine"}, "caption is 'mine'"),
        (GroundingDinoDescriber, {"names": "a dog"}, "names is 'a dog'"),
        (GroundingDinoDescriber, {"names": ["a dog", "."]}, "names is"),
        (GroundingDinoDescriber, {"threshold": 2}, "threshold"),
    ],
)
def test_settings_out_of_range(describer, settings, message):
    with pytest.raises(ValueError, match=message):
        describer("folder", **settings)


def boxes_at(*frames):
    boxes = [(0.0, 0.0, 0.5, 0.5), (0.2, 0.5, 0.9, 1.0), (0.6, 0.1, 0.9, 0.4)]
    return [Entity(f"thing {n}", boxes[n], frame) for n, frame in enumerate(frames)]


def prepare_frames(frames):
    """ImageNet's normal colours at the model's size, float32 (T, 3, 64, 64)."""
    pictures = torch.from_numpy(frames).permute(0, 3, 1, 2)
    small = F.interpolate(pictures, (2 * SIDE,) * 2, mode="bilinear", antialias=True) / 255
    mean, deviation = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    return (small - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(deviation).view(3, 1, 1)


def sam2_logits(folder, frames, entities):
    """Logits (entities, T, H, W) by transformers' own loop, with all frames and outputs kept."""
    model = transformers.Sam2VideoModel.from_pretrained(folder)
    height, width = frames.shape[1:3]
    logits = np.full((len(entities), len(frames), height, width), np.nan, np.float32)
    for n, entity in enumerate(entities):
        session = Sam2VideoInferenceSession(
            video=prepare_frames(frames),
            video_height=height,
            video_width=width,
            dtype=torch.float32,
        )
        box = torch.tensor(entity.box).view(1, 1, 2, 2) * 2 * SIDE
        labels = torch.tensor([[[2, 3]]])
        session.add_point_inputs(
            session.obj_id_to_idx(1), entity.frame, {"point_coords": box, "point_labels": labels}
        )
        session.obj_with_new_inputs = [1]
        for reverse in (False, True):
            for output in model.propagate_in_video_iterator(session, entity.frame, reverse=reverse):
                full = F.interpolate(output.pred_masks, (height, width), mode="bilinear")
                logits[n, output.frame_idx] = full[0, 0].numpy()
    assert np.isfinite(logits).all()
    return logits


def highest(logits):
    """Ids by the higher logit; and where the choice is not closer than rounding."""
    ordered = np.sort(np.concatenate([logits, np.zeros_like(logits[:1])]), axis=0)
    clear = ordered[-1] - ordered[-2] > 0.2
    return np.where(logits.max(0) > 0, logits.argmax(0) + 1, 0), clear


@pytest.mark.parametrize("frames", [(6, 6, 6), (0, 13, 5)])
def test_sam2_is_called_as_transformers_says(sam2, frames):
    """On fourteen frames: its memory reaches over four."""
    shot, entities = make_shot(14), boxes_at(*frames)
    tracks = Sam2Tracker(sam2, device="cpu").track(shot, entities)
    expected, clear = highest(sam2_logits(sam2, shot.frames, entities))
    assert tracks.masks.dtype == np.uint8 and tracks.masks.shape == shot.frames.shape[:3]
    assert clear.mean() > 0.5
    assert (tracks.masks == expected)[clear].mean() > 0.999
    assert set(np.unique(tracks.masks)) == {0, 1, 2, 3}
    assert tracks.names == {1: "thing 0", 2: "thing 1", 3: "thing 2"}


def test_sam2_follows_the_boxes(sam2, shot):
    tracker = Sam2Tracker(sam2, device="cpu")
    one, other = (
        tracker.track(shot, [Entity("a", box, 2)]).masks
        for box in ((0.0, 0.0, 0.3, 0.3), (0.5, 0.5, 1.0, 1.0))
    )
    assert (one[2] != other[2]).any() and (np.delete(one, 2, 0) != np.delete(other, 2, 0)).any()


def test_sam2_forgets_what_no_frame_will_read(sam2, monkeypatch):
    kept = []

    class Session(Sam2VideoInferenceSession):
        def __init__(self, *args, **settings):
            super().__init__(*args, **settings)
            kept.append(self)

    module = transformers.models.sam2_video.modeling_sam2_video
    monkeypatch.setattr(module, "Sam2VideoInferenceSession", Session)
    Sam2Tracker(sam2, device="cpu").track(make_shot(30), boxes_at(15, 15))
    for outputs in kept[0].output_dict_per_obj.values():
        # Four on either side of the boxes' frame, and the last four of either way.
        assert len(outputs["non_cond_frame_outputs"]) <= 4 * 4
        for output in outputs["non_cond_frame_outputs"].values():
            assert "high_res_masks" not in output


def test_sam2_against_its_processor(sam2, shot, tmp_path):
    """transformers' processor prepares the frames and boxes; it needs torchvision."""
    pytest.importorskip("torchvision")
    from transformers.models.sam2.image_processing_sam2 import Sam2ImageProcessor
    from transformers.models.sam2_video.video_processing_sam2_video import Sam2VideoVideoProcessor

    size = {"height": 2 * SIDE, "width": 2 * SIDE}
    colors = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}
    processor = transformers.Sam2VideoProcessor(
        Sam2ImageProcessor(size=size, **colors), Sam2VideoVideoProcessor(size=size, **colors)
    )
    model = transformers.Sam2VideoModel.from_pretrained(sam2)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    session = processor.init_video_session(video=list(shot.frames))
    height, width = shot.frames.shape[1:3]
    entities = boxes_at(2, 2)
    boxes = [list(np.multiply(entity.box, (width, height) * 2)) for entity in entities]
    processor.add_inputs_to_inference_session(session, 2, obj_ids=[1, 2], input_boxes=[boxes])
    logits = np.zeros((2, *shot.frames.shape[:3]), np.float32)
    for reverse in (False, True):
        for output in model.propagate_in_video_iterator(session, 2, reverse=reverse):
            full = processor.post_process_masks(
                [output.pred_masks], [[height, width]], binarize=False
            )
            logits[:, output.frame_idx] = full[0][:, 0]
    expected, clear = highest(logits)
    tracks = Sam2Tracker(tmp_path, device="cpu").track(shot, entities)
    assert clear.mean() > 0.5
    assert (tracks.masks == expected)[clear].mean() > 0.999


@pytest.mark.parametrize(
    "name, part",
    [
        ("video_preprocessor_config.json", None),
        ("preprocessor_config.json", None),
        ("processor_config.json", "video_processor"),
    ],
)
def test_sam2_reads_the_colours_of_the_processors_file(sam2, tmp_path, name, part):
    folder = tmp_path / "sam2"
    shutil.copytree(sam2, folder)
    settings = {"image_mean": [0.5, 0.25, 0.0], "image_std": [0.5, 0.5, 1.0]}
    (folder / name).write_text(json.dumps({part: settings} if part else settings))
    loaded = Sam2Tracker(folder, device="cpu").loaded
    assert loaded.mean.flatten().tolist() == [127.5, 63.75, 0]
    assert loaded.deviation.flatten().tolist() == [127.5, 127.5, 255]


def test_sam2_refuses_entities_it_cannot_follow(shot):
    tracker = Sam2Tracker("no such folder")
    assert not tracker.track(shot, []).masks.any()
    with pytest.raises(ValueError, match="'thing 0' is on frame 5 of a shot of 5"):
        tracker.track(shot, boxes_at(5))
    with pytest.raises(ValueError, match="256 entities"):
        tracker.track(shot, boxes_at(0) * 256)


@pytest.fixture(params=["kosmos2", "florence2", "grounding_dino", "sam2"])
def stage(request):
    """A class, a checkpoint of it, and how it is used."""
    folder = request.getfixturevalue(request.param)
    sidecar = {"caption": "a dog"}
    tracked = lambda x: x.track(make_shot(3), boxes_at(1)).masks.tolist()  # noqa: E731
    describe = lambda x: x.describe(make_shot(3, sidecar=sidecar))  # noqa: E731
    return {
        "kosmos2": (functools.partial(Kosmos2Describer, tokens=8), describe),
        "florence2": (functools.partial(Florence2Describer, tokens=8), describe),
        "grounding_dino": (functools.partial(GroundingDinoDescriber, threshold=0.1), describe),
        "sam2": (Sam2Tracker, tracked),
    }[request.param], folder


def test_weights_load_at_first_use_and_stay_out_of_pickles(stage):
    (make, use), folder = stage
    fresh = make(folder, device="cpu")
    before = pickle.dumps(fresh)
    expected = use(fresh)
    after = pickle.dumps(fresh)
    assert len(after) == len(before) < 2000
    assert use(pickle.loads(after)) == expected


def test_folders_of_another_kind_are_refused(stage, tmp_path):
    (make, use), folder = stage
    with pytest.raises(CheckpointError, match=f"{tmp_path}: no config.json; expected a checkpoint"):
        use(make(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(CheckpointError, match=f"{tmp_path}: model_type 'clip'; expected"):
        use(make(tmp_path))
    shutil.copy(folder / "config.json", tmp_path)
    # A pickled checkpoint is no checkpoint: unpickling runs code.
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=f"{tmp_path}: cannot be loaded.*safetensors"):
        use(make(tmp_path))


def test_checkpoints_that_lack_tensors_are_refused(stage, tmp_path):
    (make, use), folder = stage
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    tensors = load_file(folder / "model.safetensors")
    removed = max((name for name in tensors if "layer" in name), key=lambda x: tensors[x].size)
    del tensors[removed]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=f"{tmp_path}: 1 tensors of .* are missing"):
        use(make(tmp_path))


@pytest.mark.parametrize("describer", [Kosmos2Describer, Florence2Describer])
def test_folders_without_a_processor_are_refused(describer, request, tmp_path, shot):
    folder = request.getfixturevalue(describer.__name__.removesuffix("Describer").lower())
    for name in ("config.json", "model.safetensors"):
        shutil.copy(folder / name, tmp_path)
    with pytest.raises(CheckpointError, match=f"{tmp_path}: has no {describer.__name__[:7]}"):
        describer(tmp_path, device="cpu").describe(shot)
