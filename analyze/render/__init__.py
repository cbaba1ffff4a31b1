"""Ground: templates of HTML in which no text becomes markup, and plots as SVG.

html           templates filled, style sheets and the content security policy
report_blocks  what a report is made of
plot           curves and scatter plots as SVG
"""
