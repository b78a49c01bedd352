# For machines with an NVIDIA driver and its container toolkit: CUDA's libraries come with the locked torch.
FROM python:3.11-slim
RUN useradd --create-home --uid 1000 detdiffusion \
    && install --directory --owner=detdiffusion --group=detdiffusion /artifacts \
    && install --directory --mode=1777 /tmp/detdiffusion-gpus
WORKDIR /app
COPY requirements.lock ./
RUN pip install --no-cache-dir --no-deps --requirement requirements.lock
COPY . ./
RUN pip install --no-cache-dir --no-deps .
USER detdiffusion
ENV DETDIFFUSION_HOME=/artifacts
ENTRYPOINT ["detdiffusion"]
