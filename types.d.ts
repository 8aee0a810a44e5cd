// What templates/base.html loads as classic scripts, and the events that the modules listen to.
import type { Chart as ChartJs } from "chart.js";
import type Htmx from "htmx.org";
import type { HtmxBeforeSwapDetails, HtmxResponseInfo } from "htmx.org";

declare global {
  const Chart: typeof ChartJs;
  const htmx: typeof Htmx;

  interface HTMLElementEventMap {
    "htmx:afterRequest": CustomEvent<HtmxResponseInfo & { successful: boolean }>;
    "htmx:beforeSwap": CustomEvent<HtmxBeforeSwapDetails>;
    "medseg:toast": CustomEvent<{ text: string; kind: string }>;
  }
}
