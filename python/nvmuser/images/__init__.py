"""Images of volumes: files from which a volume is filled, or that a volume is copied to.

`transfer` copies between a file and a namespace, `checkpoint` remembers how far, `formats` is about what is not raw,
`volumes` carries an import or an export out. All of them go through a target, so that every backend is alike.
"""
