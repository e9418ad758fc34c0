/* Search on pages that were opened from disk. There browsers refuse to start a worker, so its script runs in a hidden
   frame instead, and messages go to and fro as events. Pages from a server use a real worker. */
if (location.protocol === "file:") {
  window.IFrameWorker = class extends EventTarget {
    constructor(url) {
      super()
      this.frame = document.createElement("iframe")
      this.frame.hidden = true
      this.ready = new Promise(resolve => {
        const begin = () => {
          document.body.appendChild(this.frame)
          const inside = this.frame.contentWindow
          inside.postMessage = data => this.dispatchEvent(new MessageEvent("message", { data }))
          inside.importScripts = (...urls) => urls.reduce((before, next) => before.then(() => load(inside, next)), Promise.resolve())
          load(inside, url).then(() => resolve(inside))
        }
        document.body ? begin() : addEventListener("DOMContentLoaded", begin)
      })
    }
    postMessage(data) {
      this.ready.then(inside => inside.dispatchEvent(new inside.MessageEvent("message", { data })))
    }
    terminate() {
      this.frame.remove()
    }
  }
  const load = (inside, url) => new Promise((resolve, reject) => {
    const script = inside.document.createElement("script")
    Object.assign(script, { src: url, onload: resolve, onerror: reject })
    inside.document.head.appendChild(script)
  })
  window.Worker = window.IFrameWorker
}
