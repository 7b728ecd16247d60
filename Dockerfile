FROM python:3.13-slim

RUN useradd --create-home --uid 10001 service
WORKDIR /app
COPY requirements.lock ./
RUN pip install --no-cache-dir -r requirements.lock
COPY schema.sql pgvector_api.py pgvector_db.py pgvector_cli.py ./
COPY pgvector_service ./pgvector_service

USER service
ENV API_HOST=0.0.0.0 API_PORT=8000 PYTHONUNBUFFERED=1
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen(f'http://127.0.0.1:{os.environ[\"API_PORT\"]}/health/ready', timeout=2)"]
CMD ["python", "-m", "pgvector_cli", "serve"]
