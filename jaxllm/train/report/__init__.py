"""What a run has done, as pictures: report.html (one file that opens offline) and a stand-alone SVG of the loss.

    runs      a run directory -> Run
    series    thinning, smoothing and ticks: the maths of a curve
    chart     curves -> HTML and SVG
    frame     what all charts share; the chart of one quantity
    pace      throughput, stalls, the slowest process
    sources   losses by source
    watched   norms by group; activations, attention logits and the balance of experts by layer
    loads     the load of experts over time, as heat maps
    charts    a run's or several runs' charts: what is drawn
    page      the whole report
    picture   the stand-alone SVG
    page.css, page.js   looks, and read-outs under the pointer

All shapes are drawn here and written into the file, so that the report can be read and printed where scripts do not
run; the script only adds read-outs.
"""

from jaxllm.train.report.page import write_report
from jaxllm.train.report.picture import write_loss_picture

__all__ = ["write_loss_picture", "write_report"]
