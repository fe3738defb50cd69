// Echo, and a publisher to all, on uWebSockets (C++), by its Node addon: node uwebsockets_echo.js PORT
"use strict";

const uws = require("uwebsockets");

const port = Number(process.argv[2]);
const deflate = process.env.BENCHMARK_DEFLATE === "1";

const tls = process.env.BENCHMARK_TLS;
const app = tls ? uws.SSLApp({ cert_file_name: `${tls}/cert.pem`, key_file_name: `${tls}/key.pem` }) : uws.App();

const settings = {
  maxPayloadLength: 16 * 1024 * 1024,
  maxBackpressure: 64 * 1024 * 1024,
  compression: deflate ? uws.SHARED_COMPRESSOR | uws.SHARED_DECOMPRESSOR : uws.DISABLED,
};

const publisher = {
  ...settings,
  open: (session) => {
    session.subscribe("all");
  },
  message: (session, message, isBinary) => {
    app.publish("all", message, isBinary, deflate);
  },
};

app
  .ws("/publish", publisher)
  .ws("/topic", publisher)
  .ws("/*", {
    ...settings,
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
