"""Reports, each a self-contained HTML file.

Every report uses ``page``, ``charts``, ``detections``, ``labels`` and ``gallery``. The other
modules serve tools/report.py: ``runs`` reads work directories, ``evaluation`` evaluates their
checkpoints, ``config_diff`` compares their configs, and ``comparison`` builds the page.
"""
