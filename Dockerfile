# `gmtool serve` on a processor. Build: docker build -t gmtool-serve .    Run: see docs/serving.md
FROM python:3.11-slim AS build
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY gmtool gmtool
COPY training training
COPY export export
COPY serving serving
# The package of ONNX Runtime with CUDA is replaced by the one without, which is a tenth of its size
RUN python -m venv /opt/gmtool \
 && /opt/gmtool/bin/pip install --no-cache-dir ".[server]" \
 && /opt/gmtool/bin/pip uninstall -y onnxruntime-gpu \
 && /opt/gmtool/bin/pip install --no-cache-dir --force-reinstall --no-deps onnxruntime

FROM python:3.11-slim
COPY --from=build /opt/gmtool /opt/gmtool
RUN useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin gmtool
# Nothing is written: the root file system can be read-only
ENV PATH=/opt/gmtool/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --retries=3 \
  CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/healthz', timeout=2)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["gmtool", "serve", "--host", "0.0.0.0", "--port", "8000", "--access-log"]
CMD ["/models/model.onnx"]
