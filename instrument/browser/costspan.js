/*!
 * costspan in the page: what a person saw of a streamed answer, and when they left it. Apache-2.0.
 *
 * It wraps `fetch` and `EventSource`, joins the server's trace with a `traceparent`, and sends one small beacon an answer to the
 * collector. The page gets the very Response that it would get: chunks are looked at as the page reads them, none is read ahead.
 */
(() => {
  "use strict";
  if (globalThis.costspan) return;

  const STREAM = /event-stream|ndjson|jsonl/;
  const LAST = /^(done|end|complete|message_stop)$|\.completed$/; // events that say that the answer is whole
  const REPEATED = /\.done$/; // events that say again what their deltas said
  const CONTENT = ["choices", "delta", "message", "content", "text", "token", "response"];
  const READ_WHOLE = ["text", "json", "blob", "arrayBuffer", "bytes", "formData"];
  const READ_ELSEWHERE = ["tee", "pipeTo", "pipeThrough", "values", Symbol.asyncIterator];
  const MOST_CHARACTERS = 65536; // that are kept of an event

  const open = new Set(); // answers that are still to be reported, oldest first
  const answers = new WeakMap(); // by Response and EventSource
  let settings; // while costspan is on
  let originalFetch, OriginalSource; // what was there before
  let watchingFetch, WatchingSource; // what stands in their place

  /** Do something for costspan: when it fails, the page does not notice. */
  function safely(what) {
    try {
      return what();
    } catch {
      return undefined;
    }
  }

  /** Put a function in the place of an object's method; it is given the method, ready to be called as it was. */
  function wrap(object, name, ours) {
    const method = object[name];
    if (!method) return;
    const value = (...given) => ours(() => method.apply(object, given), given);
    Object.defineProperty(object, name, { value, configurable: true, writable: true });
  }

  /** A promise, looked at on its way to the page. */
  function watched(promise, onValue, onError) {
    return promise.then(
      (value) => {
        safely(() => onValue(value));
        return value;
      },
      (error) => {
        safely(() => onError(error));
        throw error;
      },
    );
  }

  function randomHex(bytes) {
    return Array.from(crypto.getRandomValues(new Uint8Array(bytes)), (byte) => byte.toString(16).padStart(2, "0")).join("");
  }

  /** Whether a JSON value of any provider's shape carries text. */
  function carriesText(value) {
    if (typeof value === "string") return value !== "";
    if (Array.isArray(value)) return value.some(carriesText);
    return !!value && CONTENT.some((name) => carriesText(value[name]));
  }

  // --- one answer ---------------------------------------------------------------------------------------------------------

  /** An answer, from the request to whatever ends it. */
  class Answer {
    /** @param {?string} given The `traceparent` that the page made itself, if it did. */
    constructor(given) {
      const [, trace, parent] = /^00-([0-9a-f]{32})-([0-9a-f]{16})-/.exec(given) || [];
      const { key, project } = settings;
      const late = Date.now() - performance.timeOrigin - performance.now(); // what a machine slept, this clock may not know
      this._origin = performance.timeOrigin + (Math.abs(late) > 100 ? late : 0);
      this._told = { v: 1, key, project, trace: trace || randomHex(16), span: randomHex(8), parent, start: this._now(), shown: 0 };
      this._traceparent = given || `00-${this._told.trace}-${this._told.span}-01`;
    }

    /** Nanoseconds since the Unix epoch, as text: no number holds them. */
    _now() {
      return Math.round((this._origin + performance.now()) * 1000) + "000";
    }

    /** It is an answer, not any request: tell of it, however it ends. */
    _want() {
      if (this._isWanted || !settings) return;
      this._isWanted = true;
      open.add(this);
      this._onAbort = () => safely(() => this._fail(this._signal.reason));
      this._signal?.addEventListener("abort", this._onAbort);
    }

    /** The headers of a response came. */
    _arrive(response) {
      const type = response.headers.get("content-type");
      this._told.headers = this._now();
      this._told.status = response.status;
      if (STREAM.test(type)) this._want();
      if (response.ok && response.body) lookAt(response, this, this._counter(type));
      else this._end(response.ok ? "ok" : "error");
    }

    /** Tokens came into view. */
    _show(tokens) {
      tokens = Math.round(tokens);
      if (!(tokens > 0)) return;
      const told = this._told;
      told.last = this._now();
      told.first = told.first || told.last;
      told.shown += tokens;
    }

    /** From here on the page itself says what is in view. */
    _count() {
      if (!this._isCounted) Object.assign(this._told, { shown: 0, first: undefined, last: undefined });
      this._isCounted = true;
    }

    /** An event of the stream: a line of JSON, or the data of a server-sent event. */
    _take(data, type) {
      const value = safely(() => JSON.parse(data));
      const isObject = value instanceof Object;
      const isLast = data === "[DONE]" || LAST.test(type) || value?.done === true || LAST.test(value?.type);
      const isText = isObject ? carriesText(value) && !REPEATED.test(value.type) : data && value !== "" && !isLast;
      if (isText && !this._isCounted) this._show(1);
      this._isWhole = isLast || (this._isWhole && !isText);
      if (value?.error) this._isWrong = true;
    }

    /** What counts the tokens in a body's chunks: one an event that carries text, or one a chunk where there are no events. */
    _counter(type) {
      if (!STREAM.test(type)) return () => this._isCounted || this._show(1);
      const decoder = new TextDecoder();
      let rest = "", data = "", event = "";
      const takeLine = (line) => {
        const [, field, text = ""] = /^(data|event)(?:: ?(.*))?$/.exec(line) || [];
        if (!/event-stream/.test(type)) {
          if (line.trim()) this._take(line);
        } else if (field === "data") data = (data + text + "\n").slice(0, MOST_CHARACTERS);
        else if (field) event = text;
        else if (!line) {
          if (data) this._take(data.slice(0, -1), event);
          data = event = "";
        }
      };
      return (chunk) => {
        const lines = (rest + decoder.decode(chunk, { stream: true })).split(/\r?\n|\r(?!$)/);
        rest = lines.pop().slice(0, MOST_CHARACTERS);
        lines.forEach(takeLine);
      };
    }

    /** Waiting for it or reading it failed, or the page gave it up. */
    _fail(error) {
      const name = error?.name;
      if (name === "TimeoutError") this._end("timeout");
      else this._end(name === "AbortError" || this._signal?.aborted ? "" : "error");
    }

    /** How it is told when it ends now; without an outcome the person left, by a button or by closing the tab. */
    _body(outcome) {
      const end = this._now();
      if (this._isWhole) outcome = "ok"; // whatever comes after
      if (outcome === "ok" ? this._isWrong : this._isLost) outcome = "error";
      if (!outcome) outcome = this._told.shown ? "cancelled" : "abandoned";
      return JSON.stringify({ ...this._told, stop: /ok|error/.test(outcome) ? undefined : end, end, outcome });
    }

    /** Tell of it, once. */
    _end(outcome) {
      if (!open.delete(this)) return;
      this._signal?.removeEventListener("abort", this._onAbort);
      if (this._isSentLater()) return;
      const [url, body] = [settings._url, this._body(outcome)];
      if (!navigator.sendBeacon?.(url, body)) originalFetch(url, { method: "POST", body, keepalive: true }).catch(() => {});
    }

    /** Leave with the browser what to send should it end this page without a word, as it does with pages in the background. */
    _sendLater() {
      this._recall = new AbortController();
      const { signal } = this._recall;
      this._later = fetchLater(settings._url, { method: "POST", body: this._body(), signal });
    }

    /** Whether that was sent; if not, it never will be. */
    _isSentLater() {
      if (this._later?.activated) return true;
      this._recall?.abort();
    }
  }

  // --- fetch --------------------------------------------------------------------------------------------------------------

  /** Look at what the page reads of a response. */
  function lookAt(response, answer, count) {
    answers.set(response, answer);
    lookAtStream(response.body, answer, count);
    wrap(response, "clone", (clone) => {
      const copy = clone();
      safely(() => {
        lookAt(copy, answer, count);
        lookAtStream(response.body, answer, count);
      });
      return copy;
    });
    if (!answer._isWanted) return; // a body that is read whole, and was not asked for as an answer
    for (const name of READ_WHOLE) {
      wrap(response, name, (read) => {
        const { body, headers } = response;
        return body.locked || response.bodyUsed ? read() : new Response(passedOn(body).stream, { headers })[name]();
      });
    }
  }

  function lookAtStream(stream, answer, count) {
    wrap(stream, "getReader", (getReader) => {
      const reader = getReader();
      safely(() => {
        answer._want();
        answer._source = answer._source || stream; // of a response and its clone, the one that is read first
        if (answer._source === stream) lookAtReader(reader, answer, count);
      });
      return reader;
    });
    wrap(stream, "cancel", (cancel) => {
      if (!stream.locked) safely(() => answer._end());
      return cancel();
    });
    for (const name of READ_ELSEWHERE) {
      wrap(stream, name, (read, given) => {
        if (stream.locked || given[0]?.preventCancel) return read(); // which is to be left as it lies
        const passed = passedOn(stream);
        const result = passed.stream[name](...given);
        if (name === "pipeTo") result.then(passed.free, passed.free);
        return result;
      });
    }
  }

  function lookAtReader(reader, answer, count) {
    let isFree;
    wrap(reader, "read", (read) =>
      watched(
        read(),
        ({ done, value }) => (done ? answer._end("ok") : count(value)),
        (error) => isFree || answer._fail(error),
      ),
    );
    wrap(reader, "cancel", (cancel) => {
      safely(() => answer._end());
      return cancel();
    });
    wrap(reader, "releaseLock", (releaseLock) => {
      isFree = true;
      return releaseLock();
    });
  }

  /** A stream's chunks for those who read without the page's reader. Nothing waits in between, so they set the pace as before. */
  function passedOn(stream) {
    const reader = stream.getReader();
    const pull = async (controller) => {
      const { done, value } = await reader.read();
      if (!done) return controller.enqueue(value);
      controller.close();
      reader.releaseLock();
    };
    return {
      stream: new ReadableStream({ pull, cancel: (reason) => reader.cancel(reason) }, { highWaterMark: 0 }),
      free: () => reader.releaseLock(),
    };
  }

  /** An answer for a request to an address that answers may come from. */
  function begun(url, traceparentOf) {
    const { href } = url;
    if (!settings || !settings._answers.some((start) => href.startsWith(start))) return undefined;
    return new Answer(traceparentOf());
  }

  function makeFetch() {
    return function fetch(input, ...rest) {
      let answer, undo;
      safely(() => {
        const init = rest[0] || {};
        const asked = input instanceof Request ? input : { url: input };
        const headers = new Headers(init.headers || asked.headers);
        answer = begun(new URL(asked.url, document.baseURI), () => headers.get("traceparent"));
        if (!answer) return;
        answer._signal = init.signal || asked.signal;
        if (settings._isNamed || STREAM.test(headers.get("accept"))) answer._want();
        if (headers.has("traceparent")) return;
        headers.set("traceparent", answer._traceparent);
        const request = [init, init.headers || asked].find((each) => each instanceof Request);
        if (request) {
          // Any `init` would make the browser forget the request's referrer; it copies the headers before fetch returns.
          request.headers.set("traceparent", answer._traceparent);
          undo = () => request.headers.delete("traceparent");
        } else {
          // As the page wrote them, for whoever has wrapped fetch before: a plain object stays one.
          const given = init.headers?.constructor === Object && { ...init.headers, traceparent: answer._traceparent };
          rest[0] = Object.assign(Object.create(Object.getPrototypeOf(init)), init, { headers: given || headers });
        }
      });
      const response = originalFetch.call(this, input, ...rest);
      if (!answer) return response;
      if (undo) safely(undo);
      return watched(response, (came) => answer._arrive(came), (error) => answer._fail(error));
    };
  }

  // --- EventSource --------------------------------------------------------------------------------------------------------

  function makeSource() {
    return class EventSource extends OriginalSource {
      constructor(url, ...rest) {
        let answer;
        const address = safely(() => {
          const target = new URL(url, document.baseURI);
          answer = begun(target, () => target.searchParams.get("traceparent"));
          if (!answer || target.searchParams.has("traceparent")) return url;
          target.search += (target.search ? "&" : "?") + "traceparent=" + answer._traceparent;
          return target.href;
        });
        super(address || url, ...rest);
        if (answer) safely(() => lookAtSource(this, answer));
      }

      addEventListener(type, ...rest) {
        safely(() => listenTo(this, type));
        super.addEventListener(type, ...rest);
      }

      close() {
        safely(() => answers.get(this)?._end());
        super.close();
      }
    };
  }

  function lookAtSource(source, answer) {
    answers.set(source, answer);
    answer._types = new Set(["open", "error"]);
    answer._want();
    listenTo(source, "message");
    const listen = OriginalSource.prototype.addEventListener.bind(source);
    listen("open", () => {
      answer._told.headers = answer._told.headers || answer._now();
      answer._isLost = false;
    });
    // The browser tries again by itself, unless it was told that there is nothing to hope for.
    listen("error", () => safely(() => (source.readyState === 2 || answer._isWhole ? answer._end("error") : (answer._isLost = true))));
  }

  /** Look at events of a type, before the page does. */
  function listenTo(source, type) {
    const answer = answers.get(source);
    if (!answer || answer._types.has(type)) return;
    answer._types.add(type);
    OriginalSource.prototype.addEventListener.call(source, type, (event) => safely(() => answer._take(event.data, type)));
  }

  // --- the page -----------------------------------------------------------------------------------------------------------

  /** The page goes away, or into the back/forward cache: nobody sees what comes from here on. */
  function onHide() {
    for (const answer of open) safely(() => answer._end());
  }

  /** A page in the background may be ended without a pagehide. */
  function onVisibility() {
    for (const answer of open) {
      safely(() => {
        if (answer._isSentLater()) open.delete(answer);
        else if (document.visibilityState === "hidden") answer._sendLater();
      });
    }
  }

  /**
   * Start to watch the page's answers. Where there is no page (a worker, a server) it does nothing.
   *
   * @param {{endpoint: string, key?: string, project?: string, answers?: string|string[]}} given Where the collector is; a key
   *   made with `costspan keys create --pages`; the project, at a collector without keys; and what the addresses of answers begin
   *   with, separated by spaces or as an array. Without those, it is every stream that comes from the page's own origin.
   */
  function init({ endpoint, key, project, answers: named } = {}) {
    if (!globalThis.document) return;
    const resolved = (address) => new URL(address, document.baseURI).href;
    const made = safely(
      () =>
        endpoint && {
          _url: new URL("/v1/page", resolved(endpoint)).href,
          key,
          project,
          _isNamed: !!named,
          _answers: [].concat(named || "/").join(" ").trim().split(/\s+/).map(resolved),
        },
    );
    if (!made) return console.warn("costspan: init needs the endpoint of a collector");
    settings = made;
    if (watchingFetch) return;
    [originalFetch, OriginalSource] = [window.fetch, window.EventSource];
    window.fetch = watchingFetch = makeFetch();
    if (OriginalSource) window.EventSource = WatchingSource = makeSource();
    addEventListener("pagehide", onHide);
    document.addEventListener("visibilitychange", onVisibility);
  }

  /** Stop, and put back what was there. Answers that are under way are not told of. */
  function off() {
    if (!settings) return;
    for (const answer of open) answer._recall?.abort();
    open.clear();
    settings = undefined;
    if (window.fetch === watchingFetch) window.fetch = originalFetch;
    if (window.EventSource === WatchingSource) window.EventSource = OriginalSource;
    removeEventListener("pagehide", onHide);
    document.removeEventListener("visibilitychange", onVisibility);
    watchingFetch = undefined;
  }

  /**
   * Say what really came into view: from the first call on, only what is said counts.
   *
   * @param {number} tokens How many more.
   * @param {Response|EventSource} [of] Of which answer; by default of the one that began last.
   */
  function shown(tokens, of) {
    safely(() => {
      const answer = of ? answers.get(of) : [...open].pop();
      answer._count();
      answer._show(tokens);
    });
  }

  globalThis.costspan = { init, shown, off };
  const said = globalThis.document?.currentScript?.dataset;
  if (said?.endpoint) safely(() => init(said));
})();
