"""Vision-language models behind `rdvla.model.backbone`, one file each."""
