"""Reports, each a self-contained HTML file.

``page``, ``charts``, ``detections``, ``labels`` and ``gallery`` are what every report is made of.
The others make tools/report.py: ``runs`` reads work directories, ``evaluation`` tests their
checkpoints, ``config_diff`` compares their configs, ``comparison`` puts it together.
"""
