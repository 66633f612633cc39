// Requests to the plugin's routes, which are siblings of this module's folder.

export const ROOT = new URL("../", import.meta.url);

export function address(route, parameters) {
  const url = new URL(`records/${route}`, ROOT);
  for (const [name, value] of Object.entries(parameters)) {
    if (value !== null && value !== undefined && value !== "") url.searchParams.set(name, value);
  }
  return url;
}

// What cannot be answered comes as one line of text.
export async function get(route, parameters = {}) {
  let response;
  try {
    response = await fetch(address(route, parameters));
  } catch {
    throw new Error("TensorBoard does not answer; start it again and refresh the page");
  }
  if (!response.ok) {
    const error = new Error((await response.text()).slice(0, 500));
    error.status = response.status;
    throw error;
  }
  return response.json();
}

let plotly = null;

// Plotly is large: it is loaded when the first picture is drawn.
export function loadPlotly() {
  plotly ??= new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = new URL("plotly.js", ROOT);
    script.onload = () => resolve(window.Plotly);
    script.onerror = () => {
      plotly = null;
      reject(new Error("Plotly's script is missing: pip install plotly, then start TensorBoard again"));
    };
    document.head.append(script);
  });
  return plotly;
}
