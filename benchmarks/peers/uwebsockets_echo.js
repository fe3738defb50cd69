// Echo on uWebSockets (C++), by its Node addon: node uwebsockets_echo.js PORT
"use strict";

const uws = require("uwebsockets");

const port = Number(process.argv[2]);
const deflate = process.env.BENCHMARK_DEFLATE === "1";

uws
  .App()
  .ws("/*", {
    maxPayloadLength: 16 * 1024 * 1024,
    maxBackpressure: 64 * 1024 * 1024,
    compression: deflate ? uws.SHARED_COMPRESSOR | uws.SHARED_DECOMPRESSOR : uws.DISABLED,
    message: (session, message, isBinary) => {
      session.send(message, isBinary, deflate);
    },
  })
  .listen("127.0.0.1", port, (listening) => {
    if (!listening) {
      console.error(`can't listen on port ${port}`);
      process.exit(1);
    }
  });
