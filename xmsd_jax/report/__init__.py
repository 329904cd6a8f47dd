"""From results.json, traces and a gallery to one self-contained HTML page, a markdown table and CSV."""
