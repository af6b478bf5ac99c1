"""SPDK's Storage Management Agent over our engine: `nvmuser sma serve`.

messages (what is on the wire) → devices (what each call comes to: changes), with sealed (volumes that are attached with
a key) and discovered (volumes of remotes that are found when they are attached) → server (who may call, over what);
guests (QEMU).
"""
