"""DICOM CT series, from a folder, a zip, or single files.

sniff.py  which files may be DICOM at all
files.py  where the DICOM objects lie and their headers    series.py  slices, grouped into series; choosing one
stack.py  slices -> one grid                               pixels.py  the stored numbers, whatever their compression
read.py   a series -> a Volume
"""
