"""Ground: text that is safe in HTML, plots as SVG, and the views of a notebook.

html      escaping, style sheets and the content security policy
parts     pieces of a page
plot      curves and scatter plots as SVG
notebook  what an index and a latent show in a notebook
"""
