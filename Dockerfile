# bench beside the vLLM it starts; the version is the study's.
FROM vllm/vllm-openai:v0.20.2

COPY . /opt/bench
RUN python3 -m pip install --no-cache-dir /opt/bench \
    && useradd --create-home --uid 1001 bench

USER 1001
WORKDIR /home/bench
ENTRYPOINT ["bench"]
CMD ["--help"]
